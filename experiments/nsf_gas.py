"""Neural spline flow, RQ-NSF (C), on GAS (Durkan et al. 2019; table 1, from memory: 13.09 nats).

The hyper-parameters of the paper's appendix and its authors' code: ten steps of a linear map and a
spline coupling, whose networks have two residual blocks of 256 units, dropout of 0.1 within;
the half that passes has splines of its own; 8 bins on [-3, 3]; Adam at 5e-4, falling to 0 along a
cosine over 400,000 steps of 512, gradients clipped at a norm of 5. For the data see
`jaxgen.data.uci.gas`:

    python -m experiments.nsf_gas --data.dir gas.npy
    python -m experiments.nsf_gas evaluate

Batch, steps, rate and dropout are the paper's, from memory: the code has other defaults, and names
no table. Departures: linear maps that start as random rotations (there as permutations) and have no
bias; networks whose last layer starts at 0, without the factor 1 / sqrt(256) of the softmaxes'
inputs; splines of the passing half that start as the identity; the last parameters in the place of
the best of the validation rows (`--data.held-out val --evaluate-every 10000` shows it and keeps the
best checkpoint). It has not been trained here.
"""

from jaxgen.training.recipe import Recipe

from .recipes.shared import AverageConfig
from .recipes.tabular import (
    Config,
    ModelConfig,
    OptimizerConfig,
    VectorDataConfig,
    build,
)

recipe = Recipe(
    build,
    Config(
        run_dir="runs/nsf_gas",
        steps=400_000,
        batch_size=512,
        data=VectorDataConfig(name="gas"),
        model=ModelConfig(network="nsf", layers=10, hidden=(256,), blocks=2, dropout=0.1),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            warmup_steps=0,
            decay_steps=400_000,
            schedule="cosine",
            clip_norm=5.0,
        ),
        average=AverageConfig(decay=0.0),
    ),
    data="GAS",
    published="13.09 nats (recalled)",
)

if __name__ == "__main__":
    recipe.main()
