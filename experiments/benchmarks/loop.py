"""What the loop costs: `training.loop.train` beside the same compiled steps with nothing around.

    python -m experiments.benchmarks.loop

A step of about 10 ms of matrix products, trained for two seconds with logging every 100 steps,
resident and streamed, against one dispatch of as many steps. Interleaved, medians.
"""

import shutil
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.core import Aux, Family, Optimizer, Phase, Variables
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import digits
from jaxgen.data.transforms import prepare_images, to_model_space
from jaxgen.training import loop
from jaxgen.training.config import DataConfig, RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.fit import prepare_fit
from jaxgen.training.strategies import make_strategy

from .harness import machine

STEPS, REPEATS, PRODUCTS, WIDTH = 200, 5, 24, 512


def heavy() -> Family:
    """Matrix products that take about 10 ms a step; their gradient takes two thirds of it."""

    def init(key, batch, fixed=None):
        return Variables({"net": jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5})

    def evaluate(variables, batch, key):
        x = jnp.tile(batch["image"].reshape(len(batch["image"]), -1), (1, WIDTH // 64))
        for _ in range(PRODUCTS):
            x = jnp.tanh(x @ variables.params["net"])
        return jnp.mean(x, axis=1), {}

    def loss(variables, batch, key, step):
        values, metrics = evaluate(variables, batch, key)
        return values, Aux(metrics)

    def sample(variables, key, num, *, condition=None):
        return jnp.zeros((num, 8, 8, 1))

    optimizers = {"fit": Optimizer(("net",), optax.sgd(1e-3))}
    return Family(init, optimizers, (Phase("fit", "fit", loss),), evaluate, sample)


def main() -> None:
    """Print seconds a step in the loop, in one bare dispatch, and the difference."""
    print(machine())
    family = heavy()

    def seconds_per_step(stream: bool, log_every: int) -> float:
        """Of the second half of a run, when everything is compiled."""
        directory = tempfile.mkdtemp()
        config = RunConfig(
            run_dir=directory,
            steps=2 * STEPS,
            batch_size=64,
            log_every=log_every,
            sample_every=0,
            checkpoint_every=10**9,
            data=DataConfig(stream=stream),
        )
        pipeline = Pipeline(digits("train"), 64, seed=0)
        experiment = Experiment(family, pipeline, digits("test"), prepare_images(flip=False))
        try:
            return timed(experiment, config)
        finally:
            shutil.rmtree(directory)

    def timed(experiment: Experiment, config: RunConfig) -> float:
        """Time between the rows of half the run and of the whole."""
        stamps: dict[int, float] = {}
        log = loop.Writers.log

        def stamped(self, step, metrics):
            stamps[step] = time.perf_counter()
            log(self, step, metrics)

        with mock.patch.object(loop.Writers, "log", stamped):
            loop.train(experiment, config, jax.devices()[:1])
        return (stamps[2 * STEPS] - stamps[STEPS]) / STEPS

    rows: dict[str, list[float]] = {"bare": [], "resident": [], "streamed": []}
    for _ in range(REPEATS):
        rows["bare"].append(bare(family))
        rows["resident"].append(seconds_per_step(False, STEPS // 2))
        rows["streamed"].append(seconds_per_step(True, STEPS // 2))
    medians = {name: float(np.median(values)) for name, values in rows.items()}
    for name, value in medians.items():
        extra = value / medians["bare"] - 1
        print(f"{name:>10}: {1e3 * value:.3f} ms a step, {100 * extra:+.1f} % over bare")


def bare(family: Family) -> float:
    """The compiled steps in one dispatch: no logs, no host."""
    images = np.asarray(to_model_space(jnp.asarray(digits("train").arrays["image"])))
    strategy = make_strategy("jit", jax.devices()[:1])
    state, run = prepare_fit(family, {"image": images}, batch_size=64, strategy=strategy)
    state, *_ = run(state, 10)
    begin = time.perf_counter()
    run(state, STEPS)  # it returns what the host has read
    return (time.perf_counter() - begin) / STEPS


if __name__ == "__main__":
    main()
