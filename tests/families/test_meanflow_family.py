"""MeanFlow as a family: samples of the exact average velocity, the loss by hand, guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from few_steps import train
from flax import linen as nn

from jaxgen.conditioning.base import vector_of
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.families.denoising import NAME
from jaxgen.families.meanflow import Adaptive, Guidance, meanflow
from jaxgen.noise.process import rectified
from jaxgen.noise.times import logit_normal, pairs, uniform

SHAPE = (2, 2, 2)
MEAN, STD = 0.2, 0.3


class Known(nn.Module):
    """The average velocity of N(MEAN, STD^2) data on straight lines, told (2 t, 2 (t - r))."""

    @nn.compact
    def __call__(self, x, times, condition=None, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        t, apart = (0.5 * times.T).reshape(2, -1, 1, 1, 1)
        r = t - apart

        def moments(t):
            return (1 - t) * MEAN, jnp.sqrt(jnp.square((1 - t) * STD) + jnp.square(t))

        (mean_r, std_r), (mean_t, std_t) = moments(r), moments(t)
        there = mean_r + std_r * (x - mean_t) / std_t
        return scale * (x - there) / jnp.where(apart > 0, apart, 1.0)


class Tiny(nn.Module):
    """A network small enough to compile at once."""

    @nn.compact
    def __call__(self, x, times, condition=None, *, train=False):
        h = nn.Dense(64)(x.reshape(len(x), -1)) + nn.Dense(64)(times)
        e = vector_of(condition)
        if e is not None:
            h = h + nn.Dense(64)(e)
        h = nn.Dropout(0.1, deterministic=not train)(nn.silu(h))
        return nn.Dense(x[0].size)(nn.silu(nn.Dense(64)(h))).reshape(x.shape)


def made(network=None, **options):
    options = {"times": pairs(logit_normal()), "image_shape": SHAPE, **options}
    return meanflow(network or Tiny(), rectified(), optax.adam(3e-3), **options)


KNOWN = Variables({NAME: {"scale": jnp.ones(())}}, {}, {})


@pytest.fixture(scope="module")
def images():
    x = np.random.default_rng(0).normal(MEAN, STD, (64, *SHAPE))
    return {"image": jnp.asarray(x, jnp.float32), "label": jnp.arange(64, dtype=jnp.uint8) % 10}


@pytest.mark.parametrize("num_steps", [1, 3])
def test_samples_of_the_exact_average(num_steps):
    family = made(Known(), time_scale=2.0)
    key = jax.random.key(0)
    x = jax.jit(lambda v: family.sample(v, key, 64, num_steps=num_steps))(KNOWN)
    assert x.shape == (64, *SHAPE)
    np.testing.assert_allclose(x, MEAN + STD * jax.random.normal(key, x.shape), atol=1e-5)
    assert family.sampling.passes == 1


def test_the_loss_is_least_at_the_exact_average(images):
    """On average over noise, as far as the examples tell it, and the metric is unweighted."""
    family = made(Known(), time_scale=2.0, weight=Adaptive(0.0), times=pairs(uniform(0.05, 1.0)))
    loss = family.phases[0].loss

    @jax.jit
    def mean(scale):
        variables = Variables({NAME: {"scale": scale}}, {}, {})
        keys = jax.random.split(jax.random.key(1), 400)
        values, aux = jax.vmap(lambda key: loss(variables, images, key, jnp.int32(0)))(keys)
        return values.mean(), aux.metrics["squared_error"].mean()

    (low, _), (right, squared), (high, _) = mean(0.9), mean(1.0), mean(1.1)
    assert right < min(low, high)
    np.testing.assert_allclose(squared * 8, right, rtol=1e-5)
    value, _ = jax.jit(family.evaluate)(KNOWN, images, jax.random.key(0))
    assert value.mean() == pytest.approx(float(squared), rel=0.2)


def test_training_with_guidance(images):
    """The loss falls, conditions are dropped, and the guided velocity changes it."""
    options = {"conditioning": labels(10), "condition_dropout": 0.1, "weight": Adaptive(0.5)}
    family = made(guidance=Guidance(1.5, 0.25), **options)
    start, end, metrics = train(family, images, 150)
    assert set(metrics) >= {"loss", "squared_error"}
    key = jax.random.key(5)
    evaluate = jax.jit(lambda variables, k: family.evaluate(variables, images, k)[0].mean())

    def error(variables):
        return np.mean([evaluate(variables, k) for k in jax.random.split(key, 8)])

    assert error(end) < 0.8 * error(start)

    @jax.jit
    def drawn(variables):
        losses = (one.phases[0].loss for one in (family, made(**options)))
        with_guidance, without = (loss(variables, images, key, jnp.int32(0))[0] for loss in losses)
        left_out = jax.random.bernoulli(jax.random.split(key, 3)[1], 0.1, (64,))
        x = family.sample(variables, key, 8, condition=jnp.arange(8))
        return with_guidance, without, left_out, x

    with_guidance, without, left_out, x = drawn(end)
    same = np.isclose(with_guidance, without, rtol=1e-5)
    np.testing.assert_array_equal(same, left_out)
    assert x.shape == (8, *SHAPE)
    assert np.isfinite(x).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_dropout": 0.5}, "condition_dropout needs a conditioning"),
        ({"guidance": Guidance(2.0)}, "guidance needs a conditioning, got"),
        ({"guidance": Guidance(2.0, 1.0), "conditioning": labels(10)}, "guidance.mixing lie in"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"weight": Adaptive(-1.0)}, "power must be at least 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)
