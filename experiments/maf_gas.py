"""MAF on GAS (Papamakarios et al. 2017; table 1, from memory: 9.07 nats, 10.08 with ten layers).

The hyper-parameters of the authors' code: five layers (`--model.layers 10` for MAF (10)), each a
MADE of two hidden layers of 100 tanh units, the variables' order turned round from one to the next;
Adam at 1e-4, batches of 100, L2 of 1e-6. The data, see `jaxgen.data.uci.gas`:

    python -m experiments.maf_gas --data.dir gas.npy
    python -m experiments.maf_gas evaluate

Departures: `ActNorm` in the place of batch normalization between the layers, so that a density does
not depend on a batch; log-scales bounded by 100 nats; a fixed number of steps and an average of the
parameters in the place of the best of the validation rows, 30 epochs without improvement being the
authors' end (`--data.held-out val --evaluate-every 10000` shows it and keeps the best checkpoint).
For HEPMASS and MINIBOONE the authors have 512 units and ReLU (`--data.name file --data.standardize
--model.hidden 512 512`). It has not been trained here.
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
        run_dir="runs/maf_gas",
        steps=500_000,
        batch_size=100,
        data=VectorDataConfig(name="gas"),
        model=ModelConfig(
            network="maf", layers=5, hidden=(100, 100), activation="tanh", bound=100.0
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, clip_norm=None, l2=1e-6),
        average=AverageConfig(decay=0.999),
    ),
    data="GAS",
    published="9.07 nats (recalled)",
)

if __name__ == "__main__":
    recipe.main()
