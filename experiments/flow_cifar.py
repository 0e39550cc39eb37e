"""Flow matching on CIFAR-10 (Lipman et al. 2023), in the form of the authors' own library.

The recipe of facebookresearch/flow_matching for CIFAR-10 without classes: ADM's U-Net with 256
channels at every level, 4 blocks and attention at 16x16, dropout 0.3; straight lines from data to
noise whose noise-to-signal ratio is EDM's log-normal; AdamW at 1e-4 with b2 = 0.95 and a weight
decay of 0.01, batches of 512 (64 on each of 8 GPUs), flips, an average of decay 0.999. They report
FID 2.07 near epoch 1800 of 50k samples, by Heun's method with about 50 evaluations on EDM's levels.

    python -m experiments.flow_cifar --data.dir DIR          trains, or resumes
    python -m experiments.flow_cifar sample --num 64 --out grid.png

Departures: the network resamples inside residual blocks, as ADM does, and so has 60.9M parameters,
theirs, by bare pooling and repetition, 55.7M; it is given 1000 t, theirs t; times are not cut off
at t = 0.9999; biases do not decay; float32 by default, theirs float16 by loss scaling. Not trained
here to its end.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.score import (
    Config,
    ProcessConfig,
    SamplerConfig,
    ScoreModelConfig,
    build,
)
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/flow_cifar",
        steps=175_000,
        batch_size=512,
        sample_every=10_000,
        checkpoint_every=5000,
        data=DataConfig(name="cifar10"),
        flip=True,
        model=ScoreModelConfig(
            network="adm",
            channels=128,
            multipliers=(2, 2, 2),
            num_res_blocks=4,
            attention_resolutions=(16,),
            dropout=0.3,
        ),
        process=ProcessConfig(name="rectified", prediction="velocity", times="log_normal"),
        sampler=SamplerConfig(solver="heun", num_steps=25, grid="karras"),
        optimizer=AdamConfig(learning_rate=1e-4, b2=0.95, weight_decay=0.01),
        average=AverageConfig(decay=0.999),
    ),
    data="CIFAR-10",
    published="FID 2.07",
)

if __name__ == "__main__":
    recipe.main()
