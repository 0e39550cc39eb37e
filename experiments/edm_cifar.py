"""EDM on CIFAR-10 (Karras et al. 2022).

The recipe of the authors' unconditional DDPM++ with their preconditioning: 55.7M parameters, 200
million images in batches of 512, their augmentation with the probability 0.12, Adam at 1e-3 after a
warm-up of 10 million images, dropout 0.13, an average of the parameters of a half-life of 500,000
images, at most a twentieth of those seen.
The paper reports FID 1.97 (best of three draws of 50k samples, 35 evaluations each).

    python -m experiments.edm_cifar --data.dir DIR          trains, or resumes
    python -m experiments.edm_cifar sample --num 64 --out grid.png
    python -m experiments.edm_cifar --model.network edm_ncsnpp --run-dir runs/edm_ncsnpp

Departures: the loss is the mean over an image's dimensions, theirs the sum, which Adam does not
tell apart but for its epsilon; images are mirrored beyond their borders however far, theirs once;
steps whose gradient is not finite are skipped, where they replace the numbers; samples are drawn in
float32. It has not been trained here to its end.
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
        run_dir="runs/edm_cifar",
        steps=390_625,
        batch_size=512,
        sample_every=10_000,
        checkpoint_every=5000,
        data=DataConfig(name="cifar10"),
        augment=0.12,
        model=ScoreModelConfig(
            network="edm_ddpmpp",
            channels=128,
            multipliers=(2, 2, 2),
            num_res_blocks=4,
            attention_resolutions=(16,),
            dropout=0.13,
        ),
        process=ProcessConfig(name="edm", prediction="edm", times="log_normal"),
        sampler=SamplerConfig(solver="heun", num_steps=18, grid="karras"),
        optimizer=AdamConfig(learning_rate=1e-3, warmup_steps=19_531),
        average=AverageConfig(half_life=500_000, ramp_up=0.05),
    ),
    data="CIFAR-10",
    published="FID 1.97",
)

if __name__ == "__main__":
    recipe.main()
