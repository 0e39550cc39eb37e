"""Gradient penalties: critics whose slope is known, gradients of gradients, PyTorch's, extremes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.stats import kstest

from jaxgen.losses.gan import dragan_penalty, gradient_penalty, r1_penalty, r2_penalty

SHAPE = (5, 4, 3, 2)


@pytest.fixture
def images(key):
    """Real and fake images."""
    key_real, key_fake = jax.random.split(key)
    return jax.random.normal(key_real, SHAPE), jax.random.normal(key_fake, SHAPE) - 1


def smooth_critic(params, x):
    """A small network with curvature."""
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ params["w"])
    return jnp.square(hidden) @ params["v"] + hidden @ params["v"]


def half_square(i):
    """The critic x_i^2 / 2, of gradient x_i: with target 0 its penalty is x_i^2."""
    return lambda x: jnp.square(x[:, i]) / 2


def smooth_params(key):
    key_w, key_v = jax.random.split(key)
    dim = math.prod(SHAPE[1:])
    w = jax.random.normal(key_w, (dim, 6)) / math.sqrt(dim)
    return {"w": w, "v": jax.random.normal(key_v, (6,))}


def test_penalties_of_a_linear_critic(images, key):
    """The gradient is w at every point: norm 5."""
    real, fake = images
    w = jnp.zeros(SHAPE[1:]).at[0, 0].set(jnp.array([3.0, 4.0]))

    def critic(x):
        return jnp.sum(x * w[None], axis=(1, 2, 3)) + 7

    ones = np.ones(SHAPE[0])
    np.testing.assert_allclose(gradient_penalty(critic, real, fake, key), 16 * ones, rtol=1e-6)
    np.testing.assert_allclose(gradient_penalty(critic, real, fake, key, 2.0), 9 * ones, rtol=1e-6)
    np.testing.assert_allclose(gradient_penalty(critic, real, fake, key, 7.0), 4 * ones, rtol=1e-6)
    np.testing.assert_allclose(dragan_penalty(critic, real, key), 16 * ones, rtol=1e-6)
    np.testing.assert_allclose(r1_penalty(critic, real), 12.5 * ones, rtol=1e-6)
    np.testing.assert_allclose(r2_penalty(critic, fake), 12.5 * ones, rtol=1e-6)


def test_penalties_of_a_quadratic_critic(images):
    """`a |x|^2 / 2` has the gradient a x, example by example."""
    real, fake = images

    def critic(x):
        return 1.5 * jnp.sum(jnp.square(x), axis=(1, 2, 3))

    expected = 4.5 * np.sum(np.square(real), axis=(1, 2, 3))
    np.testing.assert_allclose(r1_penalty(critic, real), expected, rtol=1e-5)
    expected = 4.5 * np.sum(np.square(fake), axis=(1, 2, 3))
    np.testing.assert_allclose(r2_penalty(critic, fake), expected, rtol=1e-5)


def test_interpolation_is_uniform_and_one_number_an_example(key):
    real, fake = jnp.tile(jnp.array([[3.0, 5.0]]), (2000, 1)), jnp.ones((2000, 2))
    u = []
    for i, top in enumerate((3.0, 5.0)):
        squared = gradient_penalty(half_square(i), real, fake, key, 0.0)
        u.append((np.sqrt(squared) - 1) / (top - 1))
    np.testing.assert_allclose(u[0], u[1], atol=1e-5)
    assert kstest(u[0], "uniform").pvalue > 1e-3


def test_dragan_noise(key):
    """A uniform share of a uniform half standard deviation: the share is an image's, the other a
    number's."""
    real = 2 * jax.random.normal(jax.random.key(3), (2000, 2)) + 20
    squared = [dragan_penalty(half_square(i), real, key, 0.0) for i in (0, 1)]
    noise = (np.sqrt(np.stack(squared, axis=1)) - real) / (0.5 * np.std(real))
    for column in noise.T:  # the product of two uniforms: P(a u < x) = x (1 - log x)
        assert kstest(column, lambda x: x * (1 - np.log(np.clip(x, 1e-9, 1)))).pvalue > 1e-3
    # E[a^2] E[u]^2 - (E[a] E[u])^2 over E[a^2] E[u^2] - (E[a] E[u])^2
    correlation = (1 / 3 / 4 - 1 / 16) / (1 / 9 - 1 / 16)
    assert abs(np.corrcoef(noise.T)[0, 1] - correlation) < 0.08
    at_data = dragan_penalty(half_square(0), real, key, 0.0, scale=0.0)
    np.testing.assert_allclose(at_data, real[:, 0] ** 2, rtol=1e-5)


def test_dragan_penalty_of_the_authors_code(key):
    """Data +-1 and the critic |x|^2 / 2: on data of 1 the mean of (1 + a u / 2)^2, a and u uniform,
    1 + 1 / 4 + 1 / 36."""
    real = jnp.where(jnp.arange(20_000) % 2, 1.0, -1.0)[:, None]
    penalty = dragan_penalty(half_square(0), real, key, 0.0)
    np.testing.assert_allclose(penalty[1::2].mean(), 1.2778, atol=5e-3)
    np.testing.assert_allclose(penalty[::2].mean(), 0.7778, atol=5e-3)


def test_penalties_of_an_example_alone(images, key):
    """Per example: R1 of the batch is R1 of each, whatever the others are."""
    real, _ = images
    params = smooth_params(key)
    whole = r1_penalty(lambda x: smooth_critic(params, x), real)
    alone = [r1_penalty(lambda x: smooth_critic(params, x), real[i : i + 1]) for i in range(5)]
    np.testing.assert_allclose(whole, np.concatenate(alone), rtol=1e-5)


PENALTIES = {
    "gradient_penalty": lambda critic, real, fake, key: gradient_penalty(critic, real, fake, key),
    "dragan_penalty": lambda critic, real, fake, key: dragan_penalty(critic, real, key),
    "r1_penalty": lambda critic, real, fake, key: r1_penalty(critic, real),
    "r2_penalty": lambda critic, real, fake, key: r2_penalty(critic, fake),
}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_gradient_of_the_penalty_against_finite_differences(images, key, penalty):
    @jax.jit
    def mean_penalty(params):
        return jnp.mean(penalty(lambda x: smooth_critic(params, x), *images, key))

    check_grads(
        mean_penalty, (smooth_params(key),), order=1, modes=["rev"], atol=2e-3, rtol=2e-3, eps=2e-3
    )


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_a_critic_without_slope(images, key, penalty):
    def mean_penalty(scale):
        return jnp.mean(penalty(lambda x: scale * jnp.sum(x, axis=(1, 2, 3)), *images, key))

    value, gradient = jax.jit(jax.value_and_grad(mean_penalty))(0.0)
    assert value in (0.0, 1.0)
    assert gradient == 0


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("scale", [1e4, -1e4, 1e-25])
def test_a_critic_of_extreme_slope(images, key, penalty, scale):
    def mean_penalty(scale):
        return jnp.mean(penalty(lambda x: scale * jnp.sum(x, axis=(1, 2, 3)), *images, key))

    value, gradient = jax.value_and_grad(mean_penalty)(scale)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient)


def test_penalty_parity_with_pytorch(images, key):
    torch = pytest.importorskip("torch")
    params = smooth_params(key)
    w, v = (torch.from_numpy(np.array(params[name])).requires_grad_() for name in ("w", "v"))
    x = torch.from_numpy(np.array(images[0])).requires_grad_()
    hidden = torch.tanh(x.reshape(SHAPE[0], -1) @ w)
    logits = hidden**2 @ v + hidden @ v
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    expected = slope.square().sum(dim=(1, 2, 3)) / 2
    expected.sum().backward()

    def penalty(params):
        return r1_penalty(lambda x: smooth_critic(params, x), images[0])

    np.testing.assert_allclose(penalty(params), expected.detach(), rtol=1e-5)
    ours = jax.grad(lambda params: penalty(params).sum())(params)
    np.testing.assert_allclose(ours["w"], w.grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["v"], v.grad, rtol=1e-4, atol=1e-5)


def test_low_precision_images(images, key):
    """The point of the gradient and the sums are float32; the critic may compute as it likes."""
    real, fake = (x.astype(jnp.bfloat16) for x in images)

    def critic(x):
        assert x.dtype == jnp.float32
        return jnp.sum(x, axis=(1, 2, 3)).astype(jnp.bfloat16)

    for penalty in PENALTIES.values():
        value = penalty(critic, real, fake, key)
        assert value.dtype == jnp.float32
        assert jnp.isfinite(value).all()
