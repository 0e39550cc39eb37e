"""NCSN++ on CIFAR-10: the score of a variance-exploding SDE (Song et al. 2021).

The authors' continuous NCSN++: 62.8M parameters, deviations from 0.01 to 50 of data in [0, 1]
(here twice that, of data in [-1, 1]), times uniform in [1e-5, 1], Adam at 2e-4 after 5,000 steps,
gradients clipped at 1, batches of 128, flips, dropout 0.1, 1.3 million steps, an average of decay
0.999. Samples by 1,000 steps of reverse diffusion, each after one Langevin step of signal-to-noise
ratio 0.16. The paper reports FID 2.38 of 50k samples from the best checkpoint; of the deep one
(`--model.num-res-blocks 8`, 950,000 steps) 2.20.

    python -m experiments.ncsnpp_cifar --data.dir DIR          trains, or resumes
    python -m experiments.ncsnpp_cifar sample --num 16 --out grid.png
    python -m experiments.ncsnpp_cifar sample --sampler.solver heun --sampler.grid karras \\
        --sampler.num-steps 18 --sampler.sigma-min 0.02

Departures: the loss is the mean over an image's dimensions, theirs half the sum; the last step
leads to t = 1e-5, theirs starts there. It has not been trained here to its end.
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
        run_dir="runs/ncsnpp_cifar",
        steps=1_300_000,
        batch_size=128,
        sample_every=50_000,
        checkpoint_every=10_000,
        data=DataConfig(name="cifar10"),
        flip=True,
        model=ScoreModelConfig(
            network="ncsnpp",
            channels=128,
            multipliers=(1, 2, 2, 2),
            num_res_blocks=4,
            attention_resolutions=(16,),
            dropout=0.1,
        ),
        process=ProcessConfig(name="ve", prediction="negative_eps", times="uniform"),
        sampler=SamplerConfig(
            solver="predictor_corrector", num_steps=1000, grid="uniform", last_time=1e-5, snr=0.16
        ),
        optimizer=AdamConfig(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
        average=AverageConfig(decay=0.999, warm_up=False),
    ),
    data="CIFAR-10",
    published="FID 2.38",
)

if __name__ == "__main__":
    recipe.main()
