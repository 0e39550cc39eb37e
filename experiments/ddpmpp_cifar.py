"""DDPM++ on CIFAR-10: the score of a variance-preserving SDE (Song et al. 2021).

The authors' continuous DDPM++: 61.8M parameters, rates from 0.1 to 20, times uniform in [1e-5, 1],
Adam at 2e-4 after 5,000 steps, gradients clipped at 1, batches of 128, flips, dropout 0.1, 1.3
million steps, an average of decay 0.9999. Samples by 1,000 steps of Euler and Maruyama to t = 1e-3.
The paper reports FID 2.55 of 50k samples from the best checkpoint, 3.93 by the ODE and 3.16
bits/dim from the last one; for the sub-VP SDE (`--process.name sub_vp`) 2.61, 3.16 and 3.02.

    python -m experiments.ddpmpp_cifar --data.dir DIR          trains, or resumes
    python -m experiments.ddpmpp_cifar --process.name sub_vp --run-dir runs/sub_vp --data.dir DIR
    python -m experiments.ddpmpp_cifar sample --num 16 --out grid.png
    python -m experiments.ddpmpp_cifar evaluate

Departures: the network says the negative noise, the score times its deviation, as theirs does once
scaled; images are not dequantized in training. Not trained here to its end.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.score import (
    Config,
    ProcessConfig,
    SamplerConfig,
    ScoreEvaluationConfig,
    ScoreModelConfig,
    build,
)
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/ddpmpp_cifar",
        steps=1_300_000,
        batch_size=128,
        sample_every=50_000,
        checkpoint_every=10_000,
        data=DataConfig(name="cifar10"),
        flip=True,
        model=ScoreModelConfig(
            network="ddpmpp",
            channels=128,
            multipliers=(1, 2, 2, 2),
            num_res_blocks=4,
            attention_resolutions=(16,),
            dropout=0.1,
        ),
        process=ProcessConfig(name="linear", prediction="negative_eps", times="uniform"),
        sampler=SamplerConfig(
            solver="euler_maruyama", num_steps=1000, grid="uniform", last_time=1e-3
        ),
        optimizer=AdamConfig(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
        average=AverageConfig(decay=0.9999, warm_up=False),
        evaluation=ScoreEvaluationConfig(tolerance=1e-5, first_time=1e-5),
    ),
    data="CIFAR-10",
    published="FID 2.55, 3.16 bits/dim",
)

if __name__ == "__main__":
    recipe.main()
