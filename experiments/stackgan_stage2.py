"""StackGAN's stage II: 256x256 pixels through a frozen stage I (Zhang et al. 2017).

Stage I, a finished run of `stackgan_stage1`, draws 64x64 pixels; stage II halves them twice, adds
a code of the same condition, and draws four times as many a side. The run keeps a fingerprint of
stage I's parameters and refuses another one. An encoder of conditions that was trained in stage I
is used as it is. The table is stage I's, the rate halved every 100 epochs of 138 steps. The
paper's Inception score on Caltech-UCSD Birds, 3.70 +- 0.04 as we remember it, is by a network
fitted to the birds.

Departures are those of stage I. Stage I is normalized by the batches that stage II draws, and in
samples by their running statistics, as in the authors' code. The recipe has not been
trained.

    python -m experiments.stackgan_stage1 --data.dir DIR
    python -m experiments.stackgan_stage2 --first-stage runs/stackgan_stage1 --data.dir DIR
    python -m experiments.stackgan_stage2 sample --text "a small yellow bird" --out bird.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import OptimizerConfig
from .recipes.shared import AdamConfig
from .recipes.stackgan import BIRDS, Stage2Config, build_stage2

_ADAM = AdamConfig(learning_rate=2e-4, b1=0.5, decay_rate=0.5, decay_every=100 * (BIRDS // 64))
recipe = Recipe(
    build_stage2,
    Stage2Config(
        run_dir="runs/stackgan_stage2",
        steps=600 * (BIRDS // 64),
        batch_size=64,
        sample_every=2000,
        checkpoint_every=2000,
        data=DataConfig(name="folder", resize=256),
        shift=24 / 256,
        optimizer=OptimizerConfig(_ADAM, _ADAM),
    ),
    data="folder, captions",
    published="IS 3.70 (recalled)",
)

if __name__ == "__main__":
    recipe.main()
