"""The score-based family where the answer is known: densities, samples, loss; and its checks."""

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
from jaxgen.families.denoising import NAME, draw
from jaxgen.families.score import Sampler, score_based
from jaxgen.losses.diffusion import denoising_loss
from jaxgen.noise import parametrization
from jaxgen.noise.process import edm, rectified
from jaxgen.noise.times import karras_times, log_normal, uniform, uniform_times
from jaxgen.sampling.ode_solvers import heun
from jaxgen.sampling.probability_flow import Tolerance
from jaxgen.sampling.solvers import euler

SHAPE = (4, 4, 2)
MEAN, STD = 0.2, 0.3
HEUN = Sampler(heun(), karras_times, 18, 35)
EULER = Sampler(euler(), uniform_times, 20, 20)
TOLERANCE = Tolerance(1e-5, 1e-5, 1e-3)


class Known(nn.Module):
    """The mean of N(MEAN, STD^2) data given x at the deviation that it is told."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        variance = jnp.square(time).reshape(-1, 1, 1, 1)
        return scale * (MEAN + STD**2 / (STD**2 + variance) * (x - MEAN))


class Tiny(nn.Module):
    """A network small enough to compile at once."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, train=False):
        h = nn.Dense(64)(x.reshape(len(x), -1)) + nn.Dense(64)(time[:, None])
        e = vector_of(condition)
        if e is not None:
            h = h + nn.Dense(64)(e)
        h = nn.Dropout(0.1, deterministic=not train)(nn.silu(h))
        return nn.Dense(x[0].size)(nn.silu(nn.Dense(64)(h))).reshape(x.shape)


def made(network=None, process=None, predicts=None, **options):
    options = {"times": log_normal(), "sampler": HEUN, "tolerance": TOLERANCE, **options}
    return score_based(
        network or Tiny(),
        process or edm(),
        predicts or parametrization.edm(0.5),
        optax.adam(3e-3),
        image_shape=SHAPE,
        **options,
    )


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    bytes_ = np.clip(np.round((rng.normal(MEAN, STD, (64, *SHAPE)) + 1) * 127.5), 0, 255)
    image = jnp.asarray(bytes_ / 127.5 - 1, jnp.float32)
    return {"image": image, "label": jnp.arange(64, dtype=jnp.uint8) % 10}


def test_bits_per_dim_of_a_known_density(images):
    """The Gaussian noised to the first time, of uniformly dequantized bytes, by hand."""
    family = made(Known(), edm(), parametrization.X0)
    variables = Variables({NAME: {"scale": jnp.ones(())}}, {}, {})
    nats, metrics = jax.jit(family.evaluate)(variables, images, jax.random.key(0))
    # E over a bin of -log of the density of values 1 / 127.5 apart, in float64
    offsets = (np.arange(64) + 0.5) / 64 - 0.5
    x = np.float64(images["image"])[..., None] + offsets / 127.5
    std = np.sqrt(STD**2 + 1e-6)
    log_p = -0.5 * ((x - MEAN) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    want = -(log_p - np.log(127.5)).mean(-1).reshape(64, -1).sum(1)
    np.testing.assert_allclose(nats, want, atol=0.4)
    assert float(np.mean(nats - want)) == pytest.approx(0, abs=0.05)
    np.testing.assert_allclose(metrics["bits_per_dim"], nats / 32 / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(family.log_prob(variables, images, jax.random.key(0)), -nats)
    assert family.bound.kind == "probability-flow ODE"
    assert family.bound.dequantization == "uniform"


def test_samples_of_a_known_density():
    family = made(Known(), edm(), parametrization.X0)
    variables = Variables({NAME: {"scale": jnp.ones(())}}, {}, {})
    fine = HEUN._replace(num_steps=60)
    x = jax.jit(lambda v, key: family.sample(v, key, 256, sampler=fine))(
        variables, jax.random.key(0)
    )
    assert x.shape == (256, *SHAPE)
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(STD, abs=0.02)
    clipped = HEUN._replace(clip=True, num_steps=5)
    y = family.sample(variables, jax.random.key(0), 64, sampler=clipped)
    assert jnp.abs(y).max() <= 1 + 1e-5


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_the_loss_is_that_of_its_parts_and_falls(images, kind):
    if kind == "edm":
        family = made(conditioning=labels(10), condition_dropout=0.2)
    else:
        line = rectified()
        predicts = parametrization.velocity(line)
        family = made(None, line, predicts, times=uniform(), sampler=EULER)
    start, end, _ = train(family, images, 150)
    key = jax.random.key(5)

    @jax.jit
    def mean(variables, k):
        return family.phases[0].loss(variables, images, k, jnp.int32(0))[0].mean()

    first, last = ([mean(v, k) for k in jax.random.split(key, 8)] for v in (start, end))
    assert np.mean(last) < 0.8 * np.mean(first)
    condition = None if kind == "flow" else jnp.arange(8)
    x = jax.jit(lambda v: family.sample(v, key, 8, condition=condition))(end)
    assert np.isfinite(x).all()
    assert x.shape == (8, *SHAPE)


def test_the_loss_by_hand(images):
    line = rectified()
    family = made(Known(), line, parametrization.X0, times=uniform(0.2, 0.8), sampler=EULER)
    variables = Variables({NAME: {"scale": jnp.ones(())}}, {}, {})
    key = jax.random.key(3)
    got, _ = family.phases[0].loss(variables, images, key, jnp.int32(0))
    key_t, key_eps, _, _ = jax.random.split(key, 4)
    t = uniform(0.2, 0.8)(key_t, 64)
    eps = jax.random.normal(key_eps, images["image"].shape)
    x = (1 - t).reshape(-1, 1, 1, 1) * images["image"] + t.reshape(-1, 1, 1, 1) * eps
    output = Known().apply({"params": variables.params[NAME]}, x, t)
    want = denoising_loss(output, images["image"], eps, line.at(t), parametrization.X0)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_dequantized_training_sees_other_images(images):
    family = made(dequantizes=True)
    plain = made()
    variables = family.init(jax.random.key(0), images)
    args = (variables, images, jax.random.key(1), jnp.int32(0))
    a, b = (f.phases[0].loss(*args)[0] for f in (family, plain))
    assert np.abs(a - b).max() > 1e-5


class Informed(nn.Module):
    """What it is informed of, in the place of a prediction: 1 and the sum of the labels."""

    @nn.compact
    def __call__(self, x, time, condition=None, augmentation=None, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        labels = 0.0 if augmentation is None else augmentation.sum(axis=1).reshape(-1, 1, 1, 1)
        return scale * (1 + labels) + jnp.zeros_like(x)


def test_the_network_is_informed_of_an_augmentation_in_training_alone(images):
    """The loss is of the augmented images and their labels; samples and densities have none."""

    def augment(key, x):
        sign = jax.random.rademacher(key, (len(x),), jnp.float32)
        return sign.reshape(-1, 1, 1, 1) * x, jnp.stack([sign, 2 * sign], axis=1)

    options = {"predicts": parametrization.X0, "tolerance": Tolerance(0.1, 0.1, 1e-3)}
    family, plain = made(Informed(), augment=augment, **options), made(Informed(), **options)
    key = jax.random.key(3)
    variables = family.init(key, images)
    loss = jax.jit(family.phases[0].loss)(variables, images, key, jnp.int32(0))[0]
    x, labels = augment(jax.random.fold_in(key, 5), images["image"])
    want = jnp.square(1 + 3 * labels[:, 0].reshape(-1, 1, 1, 1) - x).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    few = HEUN._replace(num_steps=2)
    a, b = (f.sample(variables, key, 4, sampler=few) for f in (family, plain))
    np.testing.assert_array_equal(a, b)


def test_parts_of_a_sample_and_what_they_allow(images):
    """Samples by their parts; noise and back; what is known of examples stays."""
    sampler = HEUN._replace(num_steps=4, clip=True)
    family = made(Known(), edm(), parametrization.X0, sampler=sampler)
    variables = Variables({NAME: {"scale": jnp.ones(())}}, {}, {})
    key, x = jax.random.key(0), images["image"][:8]
    known = jnp.arange(4)[None, :, None] < jnp.full((8, 1, 4), 2)

    @jax.jit
    def run(variables, key):
        noise = family.encode(variables, {"image": x}, key)
        drawn = draw(family.denoising, variables, key, 8, None)
        plain = family.denoising.denoiser(variables, clip=False)
        level = edm().at(jnp.full(8, 0.1))
        return (
            noise,
            family.decode(variables, noise, key),
            drawn,
            family.sample(variables, key, 8),
            family.complete(variables, key, x, known),
            [d(5.0 + x, level).x0.max() for d in (plain, family.denoising.denoiser(variables))],
        )

    noise, back, drawn, sample, completed, (unclipped, clipped) = run(variables, key)
    np.testing.assert_allclose(back, x, atol=1e-3)
    np.testing.assert_allclose(noise, (x - MEAN) / STD, atol=0.1)
    np.testing.assert_array_equal(drawn, sample)
    np.testing.assert_allclose(completed[:, :2], x[:, :2], atol=1e-6)
    assert jnp.abs(completed[:, 2:] - x[:, 2:]).max() > 0.1
    assert unclipped > 1 >= clipped
    assert family.latents.draw(key, 3).shape == (3, *SHAPE)


def test_guidance_changes_conditional_samples(images):
    family = made(conditioning=labels(10), condition_dropout=0.2)
    variables = family.init(jax.random.key(0), images)
    few = HEUN._replace(num_steps=3)
    key, condition = jax.random.key(1), jnp.arange(4)
    plain = family.sample(variables, key, 4, condition=condition, sampler=few)
    guided = family.sample(
        variables, key, 4, condition=condition, sampler=few._replace(guidance_scale=3.0)
    )
    assert jnp.abs(plain - guided).max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_dropout": 0.5}, "condition_dropout needs a conditioning"),
        ({"condition_dropout": 1.0}, r"condition_dropout must lie in \[0, 1\), got 1.0"),
        ({"sampler": HEUN._replace(guidance_scale=2.0)}, "guidance_scale must be 1 where"),
        ({"sampler": HEUN._replace(num_steps=0)}, "num_steps must be at least 1, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_images_of_another_shape_are_refused(images):
    with pytest.raises(ValueError, match="image_shape is .* but the data has"):
        made().init(jax.random.key(0), {"image": images["image"][:, :2]})
