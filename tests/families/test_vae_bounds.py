"""VAEs whose likelihood is known: linear and Gaussian, so that every bound has its number."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from autoencoders import batch, evaluated, logged, make_vae, moved

from jaxgen.core import Variables
from jaxgen.distributions import likelihoods
from jaxgen.families import vae
from jaxgen.models import vae as networks
from jaxgen.models.bijectors.algebra import ActNorm


def linear_gaussian(weights, mean, log_variance, scale=0.5, **options):
    """A VAE whose p(x) is Gaussian, `N(0, W W^T + scale^2 I)`, and its variables.

    q(z | x) = N(mean x, e^log_variance) with the given matrix and vector.
    """
    dims, latent = weights.shape
    raw = 15 * np.arctanh(np.asarray(log_variance) / 15)
    params = {
        "encoder": {
            "posterior": {
                "mean": {"kernel": mean.T, "bias": jnp.zeros(latent)},
                "log_variance": {"kernel": jnp.zeros((dims, latent)), "bias": raw},
            }
        },
        "decoder": {"pixels": {"kernel": weights.T, "bias": jnp.zeros(dims)}},
    }
    family = vae.vae(
        networks.DenseEncoder(latent, ()),
        networks.DenseDecoder((1, dims), 1, ()),
        likelihoods.gaussian(scale),
        optax.adam(1e-3),
        latent_dim=latent,
        image_shape=(1, dims, 1),
        **options,
    )
    return family, Variables(jax.tree.map(jnp.asarray, params))


def exact(weights, x, scale=0.5):
    stats = pytest.importorskip("scipy.stats")
    covariance = weights @ weights.T + scale**2 * np.eye(len(weights))
    return stats.multivariate_normal(np.zeros(len(weights)), covariance).logpdf(x[:, 0, :, 0])


def gaussian_data(weights, num=6, scale=0.5):
    rng = np.random.default_rng(0)
    z, noise = rng.normal(size=(num, weights.shape[1])), rng.normal(size=(num, weights.shape[0]))
    return (z @ weights.T + scale * noise).reshape(num, 1, -1, 1).astype(np.float32)


def test_exact_posterior_gives_the_exact_likelihood():
    """With q(z | x) = p(z | x) every weight is p(x): any K and any draw, and the ELBO's mean."""
    weights = np.array([[1.0, 0.5], [-1.0, 0.5], [0.5, 0.0], [0.0, 1.0]], np.float32)
    weights[:, 1] -= weights[:, 0] * (weights[:, 0] @ weights[:, 1]) / (weights[:, 0] ** 2).sum()
    precision = 1 + (weights**2).sum(axis=0) / 0.25  # diagonal: the columns are orthogonal
    mean = (weights / 0.25 / precision).T
    x = gaussian_data(weights)
    for samples in (2, 7):
        family, variables = linear_gaussian(
            weights, mean, -np.log(precision), bound_samples=samples, bound_chunk=3
        )
        nats = logged(family, variables, {"image": jnp.asarray(x)}, samples)
        np.testing.assert_allclose(nats, exact(weights, x), rtol=1e-4, atol=1e-3)
    family, variables = linear_gaussian(weights, mean, -np.log(precision))
    data = {"image": jnp.asarray(np.repeat(x[:1], 4000, axis=0))}
    elbo = logged(family, variables, data)
    assert elbo.mean() == pytest.approx(exact(weights, x[:1]), abs=0.1)


@pytest.mark.parametrize("samples", [1, 7])
def test_learned_prior_is_the_one_of_the_bound(samples):
    """The prior N(1, 4) by a flow (z - 1) / 2; with q(z | x) = p(z | x) every draw gives p(x)."""
    weights = np.array([[1.0], [-0.5], [0.5]], np.float32)
    precision = 1 / 4 + (weights**2).sum(axis=0) / 0.25
    mean, shift = (weights / 0.25 / precision).T, 1 / 4 / precision
    options = {"prior": ActNorm(), "bound_samples": samples, "bound_chunk": 3}
    family, variables = linear_gaussian(weights, mean, -np.log(precision), **options)
    variables.params["encoder"]["posterior"]["mean"]["bias"] = jnp.asarray(shift)
    flow = {"bias": -jnp.ones(1), "log_scale": jnp.full(1, -math.log(2))}
    variables = Variables({**variables.params, "prior": flow}, {"prior": {}})
    x = gaussian_data(weights)
    stats = pytest.importorskip("scipy.stats")
    covariance = 4 * weights @ weights.T + 0.25 * np.eye(3)
    truth = stats.multivariate_normal(weights[:, 0], covariance).logpdf(x[:, 0, :, 0])
    nats = logged(family, variables, {"image": jnp.asarray(x)}, samples)
    np.testing.assert_allclose(nats, truth, rtol=1e-4, atol=1e-3)
    if samples == 1:  # latents are those under N(0, I), wherever they come from
        data, key = {"image": jnp.asarray(x)}, jax.random.key(0)
        latents = family.encode(variables, data, key)
        z = x[:, 0, :, 0] @ mean.T + shift
        np.testing.assert_allclose(latents, (z - 1) / 2, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            family.decode(variables, latents, key)[:, 0, :, 0], z @ weights.T, rtol=1e-4, atol=1e-5
        )
        drawn = family.sample(variables, key, 4000)[:, 0, :, 0]
        np.testing.assert_allclose(drawn.mean(axis=0), weights[:, 0], atol=0.1)
        np.testing.assert_allclose(drawn.std(axis=0), 2 * abs(weights[:, 0]), rtol=0.1)


def test_bound_rises_with_the_samples_to_the_likelihood():
    """A posterior that is wrong: ELBO < IWAE-10 < IWAE-2000, which is the exact number nearly."""
    weights = np.array([[1.0, 0.3], [-1.0, 0.8], [0.5, 0.5]], np.float32)
    mean = 0.2 * weights.T
    x = gaussian_data(weights, num=200)
    bounds = []
    for samples in (1, 10, 2000):
        family, variables = linear_gaussian(
            weights, mean, [-0.5, -0.5], bound_samples=samples, bound_chunk=100
        )
        bounds.append(float(logged(family, variables, {"image": jnp.asarray(x)}).mean()))
    truth = exact(weights, x).mean()
    assert bounds[0] + 0.2 < bounds[1] < bounds[2] - 0.02
    assert bounds[2] == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_are_one_bound(chunk):
    """7 samples, one by one and in chunks that do not divide them: the same bound."""
    data = batch(8)
    whole = make_vae(bound_samples=7, bound_chunk=7)
    variables = moved(whole, data)
    expected = logged(whole, variables, data, 1)
    family = make_vae(bound_samples=7, bound_chunk=chunk)
    bound = logged(family, variables, data, 1)
    np.testing.assert_allclose(bound, expected, rtol=1e-5)
    other = logged(family, variables, data, 2)
    assert not np.allclose(other, expected, rtol=1e-4)


def test_dreg_knows_the_encoder_through_z_alone():
    """At K = 1 with the exact posterior the encoder's gradient is zero, draw by draw."""
    weights = np.array([[1.0], [-0.5], [0.5]], np.float32)
    precision = 1 + (weights**2).sum(axis=0) / 0.25
    mean = (weights / 0.25 / precision).T
    x = jnp.asarray(gaussian_data(weights))
    norms = {}
    for objective in ("iwae", "dreg"):
        family, variables = linear_gaussian(weights, mean, -np.log(precision), objective=objective)

        def total(params, loss=family.phases[0].loss):
            values, _ = loss(Variables(params), {"image": x}, jax.random.key(0), jnp.int32(0))
            return values.sum()

        grads = jax.jit(jax.grad(total))(variables.params)["encoder"]
        norms[objective] = float(optax.tree.norm(grads))
    assert norms["dreg"] < 1e-3 < 0.1 < norms["iwae"]


def test_active_units():
    """One latent follows the image, one is constant, one moves by less than 0.01; weights count."""
    x = np.zeros((4, 1, 3, 1), np.float32)
    x[:, 0, 0, 0] = [-1, 1, -1, 1]
    x[:, 0, 1, 0] = [-0.05, 0.05, -0.05, 0.05]
    family, variables = linear_gaussian(np.eye(3, dtype=np.float32), np.eye(3), [-1.0] * 3)

    def share(weight=None):
        data = {"image": jnp.asarray(x)}
        if weight is not None:
            data["weight"] = jnp.asarray(weight)
        _, metrics = evaluated(family, variables, data)
        return np.asarray(metrics["active_units"])

    np.testing.assert_allclose(share(), [1 / 3] * 4, rtol=1e-6)
    np.testing.assert_array_equal(share([1.0, 0.0, 1.0, 0.0]), np.zeros(4))
