"""A dual encoder of pictures and captions: what obedience to a text is measured by.

    python -m experiments.dual_encoder                     of captioned_digits: trains, or resumes
    python -m experiments.dual_encoder --data.name folder --data.dir DIR --run-dir runs/dual_NAME
    python -m experiments.obedience RUN_DIR --dual-encoder runs/dual_encoder

The contrastive training of Radford et al. 2021 (CLIP) at the size of small sets: convolutions read
the picture, a transformer trained with them the caption. DIR has pictures and a metadata.jsonl.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.dual_encoder import Config, build
from .recipes.shared import AdamConfig
from .recipes.text import TextConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/dual_encoder",
        steps=1000,
        batch_size=128,
        checkpoint_every=500,
        data=DataConfig(name="captioned_digits"),
        text=TextConfig(width=64),
        optimizer=AdamConfig(
            learning_rate=2e-3, warmup_steps=50, decay_steps=1000, clip_norm=1.0, weight_decay=0.01
        ),
    ),
    data="captioned digits",
)

if __name__ == "__main__":
    recipe.main()
