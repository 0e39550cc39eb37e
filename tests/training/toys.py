"""Families small enough to check by hand."""

import jax
import jax.numpy as jnp
import optax

from jaxgen.core import Aux, Family, Phase

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
