"""Families small enough to check by hand."""

import jax
import jax.numpy as jnp
import optax

from jaxgen.core import Aux, Bound, Family, Optimizer, Phase, Variables
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import digits
from jaxgen.data.transforms import random_flip, to_model_space
from jaxgen.training.averages import warmed_up
from jaxgen.training.experiment import Experiment

WIDTH = 8


def regression(optimizer=None, *, noise=0.0, state=False):
    """Least squares: the loss is (x w + b - y)^2 per example, with input noise if asked.

    With `state`, the state counts calls and holds the mean of the inputs, as batch statistics
    would be.
    """

    def init(key, batch, fixed=None):
        params = {"net": {"b": jnp.zeros(()), "w": 0.1 * jax.random.normal(key, (WIDTH,))}}
        return Variables(params, {"mean": jnp.zeros((WIDTH,))} if state else {})

    def error_of(variables, batch, key):
        x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape)
        net = variables.params["net"]
        return x, x @ net["w"] + net["b"] - batch["y"]

    def loss(variables, batch, key, step):
        x, error = error_of(variables, batch, key)
        new = None
        if state:
            new = {"mean": 0.9 * variables.state["mean"] + 0.1 * jnp.mean(x, axis=0)}
        return jnp.square(error), Aux({"error": error}, new)

    def evaluate(variables, batch, key):
        _, error = error_of(variables, batch, key)
        return jnp.square(error), {"error": error}

    def sample(variables, key, num, *, condition=None):
        return jax.random.normal(key, (num, WIDTH)) * variables.params["net"]["w"][None]

    optimizers = {"regression": Optimizer(("net",), optimizer or optax.adam(1e-2))}
    phase = Phase("regression", "regression", loss)
    return Family(init, optimizers, (phase,), evaluate, sample)


def adversarial(repeats=2):
    """Two players on one number each: the critic follows the data, the generator the critic."""

    def init(key, batch, fixed=None):
        return Variables({"critic": jnp.zeros(()), "generator": jnp.ones(())})

    def critic(variables, batch, key, step):
        return jnp.square(variables.params["critic"] - batch["x"][:, 0]), Aux()

    def generator(variables, batch, key, step):
        params = variables.params
        value = jnp.square(params["generator"] - jax.lax.stop_gradient(params["critic"]))
        return jnp.broadcast_to(value, batch["x"].shape[:1]), Aux()

    def evaluate(variables, batch, key):
        return generator(variables, batch, key, 0)[0], {}

    optimizers = {
        "critic": Optimizer(("critic",), optax.sgd(0.25)),
        "generator": Optimizer(("generator",), optax.sgd(0.1)),
    }
    phases = (
        Phase("critic", "critic", critic, repeats),
        Phase("generator", "generator", generator),
    )
    sample = lambda variables, key, num, condition=None: jnp.zeros((num,))  # noqa: E731
    return Family(init, optimizers, phases, evaluate, sample)


def batch(key, size=16, *, weight=None):
    """A batch of `size` examples, with uneven weights if asked."""
    x = jax.random.normal(key, (size, WIDTH))
    made = {"x": x, "y": jnp.sum(x, axis=1) + 1.0}
    return made if weight is None else {**made, "weight": jnp.asarray(weight, jnp.float32)}


def mean_image(poison=None):
    """The mean image with noise, learned by least squares: a family that compiles in a moment."""

    def init(key, batch, fixed=None):
        mean = 0.01 * jax.random.normal(key, batch["image"].shape[1:])
        return Variables({"net": {"mean": mean}})

    def evaluate(variables, batch, key):
        noise = 0.1 * jax.random.normal(key, batch["image"].shape)
        error = batch["image"] + noise - variables.params["net"]["mean"][None]
        value = jnp.mean(jnp.square(error), axis=(1, 2, 3))
        if poison is not None:
            value = value + jnp.where(batch["label"] >= poison, jnp.nan, 0.0)
        return value, {"error": jnp.mean(jnp.abs(error), axis=(1, 2, 3))}

    def loss(variables, batch, key, step):
        value, metrics = evaluate(variables, batch, key)
        return value, Aux(metrics)

    def sample(variables, key, num, *, condition=None):
        mean = variables.params["net"]["mean"]
        return mean[None] + 0.1 * jax.random.normal(key, (num, *mean.shape))

    def log_prob(variables, batch, key):
        return -evaluate(variables, batch, key)[0]

    optimizers = {"fit": Optimizer(("net",), optax.adam(1e-2))}
    bound = Bound("ELBO", 64, True)
    phases = (Phase("fit", "fit", loss),)
    return Family(init, optimizers, phases, evaluate, sample, log_prob, bound)


def experiment(config, poison=None):
    """The mean of the embedded digits."""

    def prepare(key, raw, train):
        image = to_model_space(raw["image"])
        return {**raw, "image": random_flip(key, image) if train else image}

    return Experiment(
        mean_image(poison),
        Pipeline(digits("train"), config.batch_size, seed=config.seed),
        digits("test"),
        prepare,
        averages={"ema": warmed_up(0.9)},
    )
