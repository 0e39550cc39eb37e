"""Families small enough to check by hand."""

import jax
import jax.numpy as jnp
import optax

from jaxgen.core import Aux, Bound, Family, Phase
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import digits
from jaxgen.data.transforms import random_flip, to_model_space, to_uint8
from jaxgen.training.experiment import Experiment

WIDTH = 8


def regression(optimizer=None, *, noise=0.0, state=False):
    """Least squares: the loss is (x w + b - y)^2 per example, with input noise if asked.

    With `state`, the model state counts calls and holds the mean of the inputs, as batch
    statistics would be.
    """

    def init(key, batch):
        params = {"net": {"b": jnp.zeros(()), "w": 0.1 * jax.random.normal(key, (WIDTH,))}}
        return params, {"mean": jnp.zeros((WIDTH,))} if state else {}

    def loss(params, model_state, batch, key, *, train):
        x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape)
        net = params["net"]
        error = x @ net["w"] + net["b"] - batch["y"]
        if state and train:
            model_state = {"mean": 0.9 * model_state["mean"] + 0.1 * jnp.mean(x, axis=0)}
        return jnp.square(error), Aux({"error": error}, model_state)

    def sample(params, model_state, key, num, *, condition=None):
        return jax.random.normal(key, (num, WIDTH)) * params["net"]["w"][None]

    phase = Phase("regression", ("net",), loss, optimizer or optax.adam(1e-2))
    return Family(init, (phase,), loss, sample)


def adversarial(repeats=2):
    """Two players on one number each: the critic follows the data, the generator the critic."""

    def init(key, batch):
        return {"critic": jnp.zeros(()), "generator": jnp.ones(())}, {}

    def critic(params, model_state, batch, key, *, train):
        return jnp.square(params["critic"] - batch["x"][:, 0]), Aux({}, model_state)

    def generator(params, model_state, batch, key, *, train):
        value = jnp.square(params["generator"] - jax.lax.stop_gradient(params["critic"]))
        return jnp.broadcast_to(value, batch["x"].shape[:1]), Aux({}, model_state)

    phases = (
        Phase("critic", ("critic",), critic, optax.sgd(0.25), repeats),
        Phase("generator", ("generator",), generator, optax.sgd(0.1)),
    )
    return Family(init, phases, generator, lambda p, s, k, n, condition=None: jnp.zeros((n,)))


def batch(key, size=16, *, mask=None):
    """A batch of `size` examples, with an uneven mask if asked."""
    x = jax.random.normal(key, (size, WIDTH))
    made = {"x": x, "y": jnp.sum(x, axis=1) + 1.0}
    return made if mask is None else {**made, "mask": jnp.asarray(mask, jnp.float32)}


def mean_image(poison=None):
    """The mean image with noise, learned by least squares: a family that compiles in a moment."""

    def init(key, batch):
        return {"net": {"mean": 0.01 * jax.random.normal(key, batch["image"].shape[1:])}}, {}

    def loss(params, model_state, batch, key, *, train):
        noise = 0.1 * jax.random.normal(key, batch["image"].shape)
        error = batch["image"] + noise - params["net"]["mean"][None]
        value = jnp.mean(jnp.square(error), axis=(1, 2, 3))
        if poison is not None:
            value = value + jnp.where(batch["label"] >= poison, jnp.nan, 0.0)
        return value, Aux({"error": jnp.mean(jnp.abs(error), axis=(1, 2, 3))}, model_state)

    def sample(params, model_state, key, num, *, condition=None):
        mean = params["net"]["mean"]
        return mean[None] + 0.1 * jax.random.normal(key, (num, *mean.shape))

    def log_prob(params, model_state, batch, key):
        return -loss(params, model_state, batch, key, train=False)[0]

    phase = Phase("fit", ("net",), loss, optax.adam(1e-2))
    bound = Bound("ELBO", 64, True)
    return Family(init, (phase,), loss, sample, log_prob, bound=bound)


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
        to_uint8,
        ema=0.9,
    )
