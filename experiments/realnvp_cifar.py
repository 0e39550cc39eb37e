"""RealNVP on CIFAR-10 (Dinh et al. 2017), its networks as in the authors' code.

Two scales, three couplings of each mask, residual networks of 8 blocks and 64 channels (doubled at
each squeeze) with weight normalization and a skip from each block, learned log-scales, the pixels
off the diagonal of each block factored out, batches of 64, Adam 1e-3 with clipping at 100, L2 of
5e-5 on scales, mirrored images, data through a logit. The paper reports 3.49 bits/dim on the test
images (uniformly dequantized). What this code has measured stands in docs/results.md.

The authors' code (tensorflow/models, research/real_nvp) has no recipe for CIFAR-10: the numbers
are the paper's (section 4.1), the rest is the code's. So read, the network has 19,609,545
parameters, of which 51 are shifts of batch normalization; here it has 19,609,632. (The 6.4 million
of some listings are 64 channels at every scale, where the code doubles them.)

What is not as there:

- `ActNorm` before each coupling stands in the place of batch normalization of what it moved and of
  what its network sees (which under checkerboard masks is doubled, too); normalization over groups
  of an example's channels in that of batch normalization within networks. A likelihood then does
  not depend on the batch, nor on running averages.
- L2 is of channel couplings' three log-scales as well, which the code leaves out by their name.
- The paper does not give the length of its run.
- A step whose loss or gradient is not finite is skipped.

    python -m experiments.realnvp_cifar --data.dir DIR          trains, or resumes
    python -m experiments.realnvp_cifar sample --num 64 --out grid.png
    python -m experiments.realnvp_cifar evaluate
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.flow import Config, ModelConfig, OptimizerConfig, build
from .recipes.shared import AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/realnvp_cifar",
        steps=200_000,
        batch_size=64,
        flip=True,
        l2=5e-5,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(
            network="realnvp",
            levels=2,
            couplings=3,
            blocks=8,
            width=64,
            skips=True,
            diagonal=True,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, clip_norm=100.0),
        average=AverageConfig(decay=0.0),
    ),
    data="CIFAR-10",
    published="3.49 bits/dim",
)

if __name__ == "__main__":
    recipe.main()
