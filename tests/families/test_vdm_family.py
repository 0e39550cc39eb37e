"""VDM where the answer is known: likelihood and samples of a law of bytes; training; its checks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from few_steps import train
from flax import linen as nn

from jaxgen.conditioning.base import vector_of
from jaxgen.conditioning.labels import labels
from jaxgen.core import Bound, Variables
from jaxgen.families.denoising import NAME
from jaxgen.families.vdm import SCHEDULE, Sampler, vdm
from jaxgen.losses.vdm import variational_bound
from jaxgen.models.schedules import MonotoneSchedule, ScalarSchedule, gamma_of
from jaxgen.noise.parametrization import EPS, denoiser
from jaxgen.noise.process import log_snr_of
from jaxgen.sampling.solvers import ddim

SHAPE = (2, 2, 2)
BYTES, SHARES = np.array([20, 90, 150, 250]), np.array([0.1, 0.4, 0.3, 0.2])
POINTS = 2 * (BYTES + 0.5) / 256 - 1
LINE = ScalarSchedule()


class Known(nn.Module):
    """The noise that is expected in noisy points of the law, by the log-SNR it is given."""

    @nn.compact
    def __call__(self, z, time, condition=None, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        gamma = (-13.3 + 18.3 * time / 1000).reshape(-1, 1, 1, 1, 1)
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * gamma)) for sign in (-1, 1))
        points, log_p = (
            jnp.asarray(v, jnp.float32)[None, None, None, None] for v in (POINTS, np.log(SHARES))
        )
        distance = (z[..., None] - alpha * points) / sigma
        mass = jax.nn.softmax(log_p - 0.5 * jnp.square(distance))
        return scale * (z - alpha[..., 0] * (mass * points).sum(-1)) / sigma[..., 0]


class Tiny(nn.Module):
    """A network small enough to compile at once."""

    @nn.compact
    def __call__(self, z, time, condition=None, *, train=False):
        h = nn.Dense(64)(z.reshape(len(z), -1)) + nn.Dense(64)(time[:, None] / 1000)
        e = vector_of(condition)
        if e is not None:
            h = h + nn.Dense(64)(e)
        h = nn.Dropout(0.1, deterministic=not train)(nn.silu(h))
        return z + nn.Dense(z[0].size)(h).reshape(z.shape)


KNOWN = Variables(
    {
        NAME: {"scale": jnp.ones(())},
        SCHEDULE: {"w": jnp.float32(18.3), "b": jnp.float32(-13.3)},
    },
    {},
    {},
)


def made(network=None, schedule=LINE, **options):
    return vdm(network or Tiny(), schedule, optax.adam(3e-3), image_shape=SHAPE, **options)


@pytest.fixture(scope="module")
def images():
    u = np.random.default_rng(0).choice(BYTES, (512, *SHAPE), p=SHARES)
    image = jnp.asarray(2 * u / 255 - 1, jnp.float32)
    return {"image": image, "label": jnp.arange(512, dtype=jnp.uint8) % 10}


def test_the_likelihood_of_a_known_law(images):
    """At least the law's own, and near it, wherever the schedule ends."""
    u = np.round((np.asarray(images["image"]) + 1) * 127.5)
    truth = -np.log(SHARES)[np.argmax(u[..., None] == BYTES, -1)].reshape(512, -1).sum(1).mean()
    family = made(Known())

    @jax.jit
    def evaluate(variables, key):
        nats, metrics = family.evaluate(variables, images, key)
        return nats, metrics, family.log_prob(variables, images, key)

    def mean(variables, num):
        keys = jax.random.split(jax.random.key(0), num)
        return np.mean([evaluate(variables, key)[0].mean() for key in keys])

    assert mean(KNOWN, 30) == pytest.approx(truth, rel=0.03)
    longer = {"w": jnp.float32(20.5), "b": jnp.float32(-15.0)}
    assert mean(KNOWN._replace(params={**KNOWN.params, SCHEDULE: longer}), 30) == pytest.approx(
        truth, rel=0.03
    )
    nats, metrics, log_prob = evaluate(KNOWN, jax.random.key(0))
    assert set(metrics) == {"bits_per_dim", "prior_kl", "diffusion_kl", "decoder_nll"}
    np.testing.assert_allclose(metrics["bits_per_dim"], nats / 8 / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(log_prob, -nats, rtol=1e-5)
    assert family.bound == Bound("variational bound", 8, eight_bit=True)


@pytest.mark.parametrize("num_steps", [1, 7, 100])
def test_samples_of_a_known_law(num_steps):
    family = made(Known())
    draw = jax.jit(lambda v, key, n: family.sample(v, key, 2048, sampler=n), static_argnums=2)
    x = np.asarray(draw(KNOWN, jax.random.key(0), Sampler(num_steps)))
    assert x.shape == (2048, *SHAPE)
    u = np.round((x + 1) * 127.5)
    np.testing.assert_allclose((x + 1) * 127.5, u, atol=1e-3)  # bytes
    if num_steps == 100:
        shares = [(u == byte).mean() for byte in BYTES]
        np.testing.assert_allclose(shares, SHARES, atol=0.015)
        assert sum(shares) > 0.995


def test_training_lowers_the_bound_and_moves_the_schedule(images):
    family = made(schedule=MonotoneSchedule(features=8), conditioning=labels(10))
    few_images = jax.tree.map(lambda v: v[:16], images)
    start, end, metrics = train(family, few_images, 100)
    evaluate = jax.jit(lambda v, key: family.evaluate(v, few_images, key)[0].mean())
    before, after = (
        np.mean([evaluate(v, k) for k in jax.random.split(jax.random.key(9), 20)])
        for v in (start, end)
    )
    assert after < 0.8 * before
    assert abs(end.params[SCHEDULE]["b"] - start.params[SCHEDULE]["b"]) > 0.02
    rates = (v.params[SCHEDULE]["inner"]["rates"] for v in (start, end))
    assert np.abs(np.subtract(*rates)).max() > 0
    assert metrics["gamma_0"] == pytest.approx(-13.3, abs=1)
    assert metrics["gamma_1"] == pytest.approx(5.0, abs=1)
    few = Sampler(3)
    condition = jnp.arange(4)
    plain, guided, other = (
        jax.jit(lambda v, k, c, s=s: family.sample(v, k, 4, condition=c, sampler=s))(
            end, jax.random.key(1), condition
        )
        for s in (few, few._replace(guidance_scale=4.0), few._replace(solver=ddim()))
    )
    assert np.isfinite(plain).all()
    assert np.abs(plain - guided).max() > 1e-2
    assert np.abs(plain - other).max() > 1e-2


def bound(params, schedule, batch, key, num_timesteps):
    """The bound by the loss's own key, in the loss's own functions."""

    def time(level):
        return 1000 / 18.3 * (-log_snr_of(level) + 13.3)

    def network(z, time, condition):
        return Known().apply({"params": params[NAME]}, z, time)

    return variational_bound(
        denoiser(network, EPS._replace(time=time)),
        gamma_of(schedule, params[SCHEDULE]),
        batch["image"],
        jax.random.split(key, 3)[0],
        num_timesteps=num_timesteps,
    )


def test_a_chain_of_few_steps_has_a_worse_bound(images):
    """And the loss is the bound."""
    family, key = made(Known(), num_timesteps=4), jax.random.key(3)

    @jax.jit
    def values(batch):
        loss, aux = family.phases[0].loss(KNOWN, batch, key, jnp.int32(0))
        nats, terms = bound(KNOWN.params, LINE, batch, key, 4)
        return loss, aux.metrics["diffusion_kl"], nats, terms["diffusion_kl"]

    loss, diffusion, nats, want = values(jax.tree.map(lambda v: v[:32], images))
    assert loss.mean() > 50  # of 10 in continuous time
    np.testing.assert_allclose(loss, nats, rtol=1e-4)
    np.testing.assert_allclose(diffusion, want, rtol=1e-4)


@pytest.mark.parametrize("num_timesteps", [None, 8])
def test_the_schedule_is_trained_by_bound_and_variance(images, num_timesteps):
    """In continuous time the ends by the bound, what is between them by the square of its diffusion
    term; in discrete time, where the bound depends on it, all of it by the bound."""
    schedule, key = MonotoneSchedule(features=4), jax.random.key(3)
    family = made(Known(), schedule, num_timesteps=num_timesteps)
    batch = jax.tree.map(lambda v: v[:8], images)
    own = schedule.init(key, jnp.zeros(1))["params"]
    params = {NAME: {"scale": jnp.float32(0.9)}, SCHEDULE: own}

    def mean_loss(params):
        return family.phases[0].loss(Variables(params), batch, key, jnp.int32(0))[0].mean()

    def mean_bound(params):
        return bound(params, schedule, batch, key, num_timesteps)[0].mean()

    def mean_square(params):
        terms = bound(params, schedule, batch, key, num_timesteps)[1]
        return jnp.square(terms["diffusion_kl"]).mean()

    @jax.jit
    def gradients(params):
        return [jax.grad(f)(params) for f in (mean_loss, mean_bound, mean_square)]

    got, want, square = gradients(params)
    if num_timesteps is None:
        want[SCHEDULE] = {**want[SCHEDULE], "inner": square[SCHEDULE]["inner"]}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-3), got, want)


def test_more_draws_of_the_bound(images):
    """Their mean, with a smaller deviation over the examples."""
    key = jax.random.key(4)
    one, many = (jax.jit(made(Known(), bound_draws=n).evaluate)(KNOWN, images, key) for n in (1, 9))
    assert many[0].std() < 0.5 * one[0].std()
    assert many[0].mean() == pytest.approx(float(one[0].mean()), rel=0.3)
    np.testing.assert_allclose(many[1]["bits_per_dim"], many[0] / 8 / np.log(2), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_dropout": 0.5}, "condition_dropout needs a conditioning"),
        ({"sampler": Sampler(guidance_scale=2.0)}, "guidance_scale must be 1 where"),
        ({"sampler": Sampler(0)}, "sampler.num_steps must be at least 1, got 0"),
        ({"bound_draws": 0}, "bound_draws must be at least 1, got 0"),
        ({"num_timesteps": 0}, "num_timesteps must be at least 1, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)
