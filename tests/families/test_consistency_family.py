"""Consistency models where the answer is known: Gaussian data, whose paths are straight in n.

On EDM's process the path through x at sigma is `MEAN + sqrt(STD^2 + sigma^2) n`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from few_steps import train
from flax import linen as nn

from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.families.consistency import Teacher, consistency
from jaxgen.families.denoising import NAME
from jaxgen.families.score import Sampler
from jaxgen.losses.consistency import alike, mean_squared
from jaxgen.noise.consistency import (
    Grid,
    boundary,
    doubling,
    fixed,
    restart_times,
    uniform_neighbours,
)
from jaxgen.noise.parametrization import X0, Denoised
from jaxgen.noise.process import edm
from jaxgen.sampling.consistency import restarts

SHAPE = (2, 2, 1)
MEAN, STD, LEAST = 0.2, 0.3, 0.01
GRID = Grid(LEAST, 10.0)
SAMPLER = Sampler(restarts(LEAST), lambda n: restart_times(n, GRID), 1, 1)


class Known(nn.Module):
    """Where the path of x at the deviation `time` ends, at LEAST; a factor is trained."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        std = jnp.sqrt(STD**2 + jnp.square(time)).reshape(-1, 1, 1, 1)
        return MEAN + jnp.sqrt(STD**2 + (scale * LEAST) ** 2) / std**scale * STD ** (scale - 1) * (
            x - MEAN
        )


class Tiny(nn.Module):
    """A network small enough to compile at once."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, train=False):
        h = nn.Dense(32)(x.reshape(len(x), -1)) + nn.Dense(32)(time[:, None])
        h = nn.Dropout(0.1, deterministic=not train)(nn.silu(h))
        return nn.Dense(x[0].size)(h).reshape(x.shape)


def exact_denoiser(variables):
    """The mean of the data given x."""

    def denoise(x, level, condition=None):
        gain = STD**2 / (STD**2 + jnp.square(level.sigma)).reshape(-1, 1, 1, 1)
        return Denoised(MEAN + gain * (x - MEAN))

    return denoise


def made(network=None, predicts=None, **options):
    options = {
        "num_levels": fixed(40),
        "neighbours": uniform_neighbours(GRID),
        "sampler": SAMPLER,
        "image_shape": SHAPE,
        **options,
    }
    predicts = predicts or boundary(STD, LEAST)
    return consistency(network or Tiny(), edm(10.0), predicts, optax.adam(3e-3), **options)


KNOWN = Variables({NAME: {"scale": jnp.ones(())}}, {}, {})


@pytest.fixture(scope="module")
def images():
    x = np.random.default_rng(0).normal(MEAN, STD, (64, *SHAPE))
    return {"image": jnp.asarray(x, jnp.float32)}


@pytest.mark.parametrize("num_steps", [1, 3])
def test_samples_of_the_exact_model(num_steps):
    """Of the data's law, in one step and by restarts; and the noise leads to the path's end."""
    family = made(Known(), X0)
    sampler = SAMPLER._replace(num_steps=num_steps)
    x = jax.jit(lambda v, key: family.sample(v, key, 4000, sampler=sampler))(
        KNOWN, jax.random.key(0)
    )
    assert x.mean() == pytest.approx(MEAN, abs=0.02)  # the noise at 10 has not quite its mean
    assert x.std() == pytest.approx(STD, abs=0.01)


def test_a_step_of_a_restart(key):
    """From level t: what the model says, and noise up to the level that is asked for."""
    family = made(Known(), X0)
    sampler = SAMPLER._replace(times=lambda n: jnp.array([10.0, 2.0]))
    x = family.sample(KNOWN, key, 4000, sampler=sampler)
    assert x.std() == pytest.approx(np.sqrt(STD**2 + 2.0**2), rel=0.02)


def test_the_exact_model_agrees_along_the_teachers_path(images):
    """Up to Heun's error no loss is left; of another model there is."""
    teacher = Teacher(exact_denoiser, Variables({}), begins=False)
    family = made(Known(), X0, teacher=teacher, distance=mean_squared, weighting=alike)
    key = jax.random.key(0)

    @jax.jit
    def loss(scale):
        variables = Variables({NAME: {"scale": scale}}, {}, family.fixed)
        return family.phases[0].loss(variables, images, key, jnp.int32(0))[0].mean()

    right, others = loss(1.0), (loss(0.8), loss(1.2))
    assert right < 1e-6
    assert min(others) > 10 * right


def test_training_from_scratch(images):
    """The model comes to the data's law from noise of ten times its deviation."""
    family = made(num_levels=doubling(300, 5, 20), target_decay=None)
    _, end, _ = train(family, images, 300)
    x = np.asarray(jax.jit(lambda v: family.sample(v, jax.random.key(1), 1000))(end))
    assert x.mean() == pytest.approx(MEAN, abs=0.15)
    assert 0.5 * STD < x.std() < 1.5 * STD
    value, _ = jax.jit(family.evaluate)(end, images, jax.random.key(0))
    assert np.isfinite(value).all()


def test_the_targets_average(images):
    """It starts as the parameters, follows them by its decay, and is what says the target."""
    family = made(target_decay=lambda num: jnp.where(num == 40, 0.75, 0.0))
    variables = jax.device_get(jax.jit(family.init)(jax.random.key(0), images))
    jax.tree.map(np.testing.assert_array_equal, variables.state["target"], variables.params)
    moved = jax.tree.map(lambda p: p + np.float32(1), variables.params)
    arguments = (images, jax.random.key(1), jnp.int32(0))
    loss, own = (jax.jit(one.phases[0].loss) for one in (family, made()))
    values, aux = loss(variables._replace(params=moved), *arguments)
    want = jax.tree.map(lambda p: p + np.float32(0.25), variables.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), aux.state["target"], want
    )
    others, _ = own(Variables(moved), *arguments)
    assert np.abs(values - others).max() > 1e-3


def test_it_starts_from_the_teachers_parameters(images):
    trained = made().init(jax.random.key(5), images)
    family = made(teacher=Teacher(exact_denoiser, trained))
    variables = family.init(jax.random.key(0), images, family.fixed)
    jax.tree.map(np.testing.assert_array_equal, variables.params[NAME], trained.params[NAME])
    other = made(teacher=Teacher(exact_denoiser, Variables({NAME: {}})))
    with pytest.raises(ValueError, match="the teacher's parameters must fit the network"):
        other.init(jax.random.key(0), images, other.fixed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_dropout": 0.5}, "condition_dropout needs a conditioning"),
        ({"sampler": SAMPLER._replace(guidance_scale=2.0)}, "guidance_scale must be 1 where"),
        ({"sampler": SAMPLER._replace(num_steps=0)}, "num_steps must be at least 1, got 0"),
        ({"conditioning": labels(10), "condition_dropout": 1.0}, "condition_dropout must lie in"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)
    with pytest.raises(ValueError, match="sigma_min must be at least 0, got -1"):
        restarts(-1.0)
