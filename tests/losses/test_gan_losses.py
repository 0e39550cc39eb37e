"""Adversarial losses: values by hand, PyTorch's, equilibria, extremes, bad input."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import expit

from jaxgen.losses.gan import (
    ADVERSARIAL,
    Adversarial,
    adversarial,
    augmentation_kl,
    consistency_penalty,
    discriminator_accuracy,
    dragan_penalty,
    gradient_penalty,
    hinge,
    least_squares,
    minimax,
    non_saturating,
    r1_penalty,
    r2_penalty,
    relativistic_average,
    wasserstein,
)

GAMES = sorted(ADVERSARIAL)
LOG2, LOG3 = math.log(2), math.log(3)


@pytest.fixture
def unchecked():
    """As a user runs it: without the tests' own shape checks, which would raise first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# By hand, at r = log 3, 0, 2 (s = 3/4, 1/2) and f = -log 3, 0, 1/2 where logarithms come out even.
@pytest.mark.parametrize(
    ("game", "real", "fake", "discriminator", "generator"),
    [
        (minimax, [LOG3, 0], [-LOG3, 0], [2 * math.log(4 / 3), 2 * LOG2], [math.log(3 / 4), -LOG2]),
        (non_saturating, [LOG3, 0], [-LOG3, 0], [2 * math.log(4 / 3), 2 * LOG2], [2 * LOG2, LOG2]),
        (least_squares, [2, 0.5, -1], [1, 0.5, 3], [1, 0.25, 6.5], [0, 0.125, 2]),
        (hinge, [2, 0.5, -1], [-3, 0.5, 1], [0, 2, 4], [3, -0.5, -1]),
        (wasserstein, [2, 0.5], [-3, 0.5], [-5, 0], [3, -0.5]),
        # Means 0 and -log 3: r - mean(f) = log 9, 0 and f - mean(r) = 0, -log 9.
        (
            relativistic_average,
            [LOG3, -LOG3],
            [0, -2 * LOG3],
            [math.log(10 / 9) + LOG2, LOG2 + math.log(10 / 9)],
            [LOG2 + math.log(10), math.log(10) + LOG2],
        ),
    ],
    ids=["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"],
)
def test_values_by_hand(game, real, fake, discriminator, generator):
    real, fake = jnp.array(real, jnp.float32), jnp.array(fake, jnp.float32)
    np.testing.assert_allclose(game.discriminator(real, fake), discriminator, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(game.generator(fake, real), generator, rtol=1e-6, atol=1e-7)


def test_parity_with_pytorch(key):
    torch = pytest.importorskip("torch")
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    mse = torch.nn.functional.mse_loss
    logits = 3 * np.asarray(jax.random.normal(key, (2, 7)))
    r, f = (torch.from_numpy(x) for x in logits.copy())
    one, zero = torch.ones(7), torch.zeros(7)

    expected = {
        "minimax": (
            bce(r, one, reduction="none") + bce(f, zero, reduction="none"),
            -bce(f, zero, reduction="none"),
        ),
        "non_saturating": (
            bce(r, one, reduction="none") + bce(f, zero, reduction="none"),
            bce(f, one, reduction="none"),
        ),
        "least_squares": (
            (mse(r, one, reduction="none") + mse(f, zero, reduction="none")) / 2,
            mse(f, one, reduction="none") / 2,
        ),
        "relativistic_average": (
            bce(r - f.mean(), one, reduction="none") + bce(f - r.mean(), zero, reduction="none"),
            bce(f - r.mean(), one, reduction="none") + bce(r - f.mean(), zero, reduction="none"),
        ),
    }
    for name, (discriminator, generator) in expected.items():
        game = adversarial(name)
        real, fake = jnp.asarray(logits[0]), jnp.asarray(logits[1])
        np.testing.assert_allclose(game.discriminator(real, fake), discriminator, rtol=2e-6)
        np.testing.assert_allclose(game.generator(fake, real), generator, rtol=2e-6, atol=1e-6)


def test_equilibrium_and_optimum():
    """Where data and samples agree the best discriminator is undecided; elsewhere it is p/(p+q)."""
    for game, at, value in [
        (minimax, 0.0, 2 * LOG2),
        (non_saturating, 0.0, 2 * LOG2),
        (relativistic_average, 0.3, 2 * LOG2),
        (least_squares, 0.5, 0.25),
        (hinge, 0.2, 2.0),
        (wasserstein, 0.7, 0.0),
    ]:
        logits = jnp.full((3,), at)

        def mean_loss(logits, game=game):
            return jnp.mean(game.discriminator(logits, logits))

        np.testing.assert_allclose(mean_loss(logits), value, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(jax.grad(mean_loss)(logits), 0, atol=1e-7)
    # A point where p = 0.6 and q = 0.2: the optimal discriminator is 3/4 (Goodfellow, prop. 1).
    p, q, logit = 0.6, 0.2, jnp.array([LOG3])
    pull = jax.grad(lambda r: minimax.discriminator(r, logit).sum())(logit)
    push = jax.grad(lambda f: minimax.discriminator(logit, f).sum())(logit)
    np.testing.assert_allclose(p * pull + q * push, 0, atol=1e-7)


def test_generator_gradients():
    """Minimax saturates at a sure fake, the non-saturating game does not."""
    fake = jnp.array([-8.0, 0.0, 8.0])

    def slope(game):
        return jax.grad(lambda f: game.generator(f, fake).sum())(fake)

    np.testing.assert_allclose(slope(minimax), -expit(fake), rtol=1e-5)
    np.testing.assert_allclose(slope(non_saturating), -expit(-fake), rtol=1e-5)
    np.testing.assert_allclose(slope(hinge), -1)
    np.testing.assert_allclose(slope(wasserstein), -1)
    np.testing.assert_allclose(slope(least_squares), fake - 1)


def test_relativistic_means_carry_gradients(key):
    real, fake = 2 * jax.random.normal(key, (2, 6))
    for loss in (
        lambda r, f: relativistic_average.discriminator(r, f).mean(),
        lambda r, f: relativistic_average.generator(f, r).mean(),
    ):
        check_grads(jax.jit(loss), (real, fake), order=1, modes=["rev"], atol=2e-3, rtol=2e-3)
        shifted = loss(real + 5, fake + 5)  # only differences count
        np.testing.assert_allclose(shifted, loss(real, fake), rtol=1e-5)


@pytest.mark.parametrize("name", GAMES)
def test_extreme_logits_and_precision(name):
    game = adversarial(name)
    grid = jnp.array([-1e4, -100, -1, 0, 1, 100, 1e4])
    real, fake = (x.reshape(-1) for x in jnp.meshgrid(grid, grid))
    for loss in (game.discriminator, game.generator):
        value, pullback = jax.vjp(loss, real, fake)
        gradients = pullback(jnp.ones_like(value))
        assert value.shape == real.shape
        assert all(jnp.isfinite(x).all() for x in (value, *gradients))
        low = loss(real.astype(jnp.bfloat16), fake.astype(jnp.bfloat16))
        assert low.dtype == jnp.float32
        rounded = real.astype(jnp.bfloat16).astype(jnp.float32)
        rounded_fake = fake.astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(low, loss(rounded, rounded_fake))


def test_names():
    assert adversarial("hinge") is hinge
    assert all(isinstance(adversarial(name), Adversarial) for name in GAMES)
    with pytest.raises(ValueError, match=r"name must be one of minimax, .*got 'vanilla'"):
        adversarial("vanilla")


def test_accuracy():
    real, fake = discriminator_accuracy(jnp.array([2.0, 0.0, -1.0]), jnp.array([2.0, 0.0, -1.0]))
    np.testing.assert_array_equal(real, [1, 0, 0])
    np.testing.assert_array_equal(fake, [0, 0, 1])
    real, fake = discriminator_accuracy(jnp.array([0.4, 0.6]), jnp.array([0.4, 0.6]), 0.5)
    np.testing.assert_array_equal(real, [0, 1])
    np.testing.assert_array_equal(fake, [1, 0])


def test_consistency_at_extremes():
    a, b = jnp.array([1e4, 2.0, 0.5]), jnp.array([-1e4, -1.0, 0.5])
    np.testing.assert_allclose(consistency_penalty(a, b), [4e8, 9, 0])
    gradient = jax.grad(lambda a: consistency_penalty(a, b).sum())(a)
    np.testing.assert_allclose(gradient, [4e4, 6, 0])
    assert consistency_penalty(a.astype(jnp.bfloat16), b).dtype == jnp.float32


def test_augmentation_kl():
    """The mean over dimensions of KL(N(mu, sigma^2) || N(0, I)); 0 at the prior, in float32."""
    mean, log_sigma = jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([[0.0, LOG2], [0.0, 0.0]])
    expected = [(2.0 + (4 - 1) / 2 - LOG2) / 2, 0.0]
    np.testing.assert_allclose(augmentation_kl(mean, log_sigma), expected, rtol=1e-6)
    assert augmentation_kl(mean.astype(jnp.bfloat16), log_sigma).dtype == jnp.float32


def mean_critic(x):
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


B3, B4, IMAGE = jnp.zeros(3), jnp.zeros(4), jnp.zeros((3, 2, 2, 1))
LABELS = jnp.zeros(3, jnp.int32)
KEY = jax.random.key(0)
BAD = {
    "pair": (lambda: hinge.discriminator(B3, B4), "real_logits and fake_logits must match"),
    "generator": (lambda: hinge.generator(B3, B4), "real_logits and fake_logits must match"),
    "column": (lambda: minimax.discriminator(B3[:, None], B3), r"real_logits .*\(3, 1\)"),
    "integers": (lambda: minimax.generator(LABELS, B3), "fake_logits must be floats .*int32"),
    "accuracy": (lambda: discriminator_accuracy(B3, B4), "real_logits and fake_logits must match"),
    "consistency": (lambda: consistency_penalty(B3, B4), "logits and logits_augmented must match"),
    "target": (lambda: gradient_penalty(mean_critic, IMAGE, IMAGE, KEY, -1.0), "target .*-1.0"),
    "nan": (lambda: dragan_penalty(mean_critic, IMAGE, KEY, math.nan), "target .*nan"),
    "scale": (lambda: dragan_penalty(mean_critic, IMAGE, KEY, scale=-0.5), "scale .*-0.5"),
    "images": (lambda: gradient_penalty(mean_critic, IMAGE, IMAGE[:2], KEY), "real and fake must"),
    "bytes": (lambda: r1_penalty(mean_critic, IMAGE.astype(jnp.uint8)), "real must .*uint8"),
    "fake": (lambda: r2_penalty(mean_critic, B3), r"fake must .*\(3,\)"),
    "critic": (
        lambda: r1_penalty(lambda x: x[:, 0, 0], IMAGE),
        r"critic must .*got shape \(3, 1\)",
    ),
    "code": (
        lambda: augmentation_kl(IMAGE[..., 0, 0], IMAGE[:, :1, 0, 0]),
        "mean and log_sigma must match",
    ),
    "codes": (lambda: augmentation_kl(B3, B3), r"mean must be floats .*\(3,\)"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
