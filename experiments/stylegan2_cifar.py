"""StyleGAN2-ADA on CIFAR-10 (Karras et al. 2020), told the class.

The authors' configuration "cifar": two layers of mapping, no mixing of styles and no path lengths,
a discriminator without shortcuts, R1 of gamma 0.01, adaptive augmentation (ADA), Adam 0.0025 (beta
0 and 0.99, both rates lowered for lazy regularization), 100 million images in batches of 64, an
average of half-life 500,000 images. Without classes (`--model.condition none`) the generator has
19.9 million parameters. Their README reports FID 2.42, the least over the training, of 50,000
samples against all 50,000 training images; no figure of this recipe has been measured yet.

The authors' two devices have minibatch deviations over the 32 images of each; here the 64 are two
groups of 32. In bfloat16 all blocks have activations of that type, theirs have half precision.
Their FID is of samples with noise drawn for each, as here by `--sampler.random-noise`; without it
the layers' noise is constant.

    python -m experiments.stylegan2_cifar --data.dir DIR          trains, or resumes
    python -m experiments.stylegan2_cifar sample --num 80 --out grid.png
    python -m experiments.stylegan2_cifar sample --num 80 --sampler.truncation 0.7 --out usual.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.gan import OptimizerConfig
from .recipes.shared import AdamConfig, AverageConfig
from .recipes.stylegan import Config, GameConfig, ModelConfig, build

_ADAM = AdamConfig(learning_rate=2.5e-3, b1=0.0, b2=0.99)
recipe = Recipe(
    build,
    Config(
        run_dir="runs/stylegan2_cifar",
        steps=1_562_500,  # 100 million images
        batch_size=64,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(
            mapping_layers=2, mixing=0.0, residual=False, stddev_group=32, condition="label"
        ),
        game=GameConfig(r1_weight=0.01, path_length_weight=0.0, ada_target=0.6),
        optimizer=OptimizerConfig(_ADAM, _ADAM),
        average=AverageConfig(half_life=500_000, ramp_up=0.05),
    ),
    data="CIFAR-10",
    published="FID 2.42",
)

if __name__ == "__main__":
    recipe.main()
