"""MeanFlow on CIFAR-10 (Geng et al. 2025), one evaluation a sample.

The recipe of the paper's unconditional network, DDPM++ in EDM's form without its preconditioning,
told `t` and `t - r` as they are: 800,000 steps of 1024 images, Adam at 6e-4 after a warm-up of
10,000 steps, dropout 0.2, logits of both times N(-2, 2^2), different for three quarters of the
images, adaptive weights of power 0.75, an average of the parameters of decay 0.99995. The paper
reports FID 2.92 of 50k samples (this figure from its tables by memory); the authors' PyTorch code,
from which the settings are, says "about 2.9" (Gsunshine/py-meanflow, cifar10_v0.sh).

    python -m experiments.meanflow_cifar --data.dir DIR       trains, or resumes
    python -m experiments.meanflow_cifar sample --num 64 --out grid.png

Departures: without the authors' augmentation pipe (EDM's, without rotation and vertical flips) and
its labels, images are mirrored instead; the decay of the average warms up, theirs is constant;
steps whose gradient is not finite are skipped. It has not been trained here to its end.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.meanflow import Config, MeanFlowConfig, build
from .recipes.score import ScoreModelConfig
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/meanflow_cifar",
        steps=800_000,
        batch_size=1024,
        sample_every=10_000,
        checkpoint_every=5000,
        data=DataConfig(name="cifar10"),
        flip=True,
        model=ScoreModelConfig(
            network="edm_ddpmpp",
            channels=128,
            multipliers=(2, 2, 2),
            num_res_blocks=4,
            attention_resolutions=(16,),
            dropout=0.2,
        ),
        meanflow=MeanFlowConfig(times_mean=-2.0, times_std=2.0, apart=0.75, power=0.75),
        optimizer=AdamConfig(learning_rate=6e-4, warmup_steps=10_000),
        average=AverageConfig(decay=0.99995),
    ),
    data="CIFAR-10",
    published="FID 2.92 (recalled)",
)

if __name__ == "__main__":
    recipe.main()
