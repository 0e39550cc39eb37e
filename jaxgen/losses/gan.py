"""Losses of adversarial training: the two players' games, penalties of the critic's gradient.

All are pure and per example. A game is an `Adversarial`, two functions of the discriminator's
logits (its output before any sigmoid; the critic's score where there is no probability):

    >>> discriminate = lambda x: x.sum(axis=1)
    >>> real, fake = jnp.ones((2, 3)), jnp.zeros((2, 3))
    >>> game, key = adversarial("hinge"), jax.random.key(0)
    >>> loss_d = game.discriminator(discriminate(real), discriminate(fake))
    >>> loss_d += 10.0 * gradient_penalty(discriminate, real, fake, key)
    >>> loss_g = game.generator(discriminate(fake), discriminate(real))
    >>> loss_d.shape, loss_g.shape
    ((2,), (2,))

Everything is computed in float32, whichever float type the logits have. Below, s is the sigmoid,
r the logit of a real example, f that of a fake one.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_choice, check_same_shape
from jaxgen.distributions.elementwise import gaussian_kl

Critic = Callable[[Array], Array]
_Loss = Callable[[Array, Array], Array]


class Adversarial(NamedTuple):
    """The losses of the two players, one number for each pair of a real and a fake example.

    Both raise a ValueError unless their arguments are floats of one shape [B].

    Attributes:
        discriminator: `(real_logits, fake_logits) -> f32[B]`, the loss on the real plus that on the
            fake example.
        generator: `(fake_logits, real_logits) -> f32[B]`; only `relativistic_average` uses the
            second argument.
    """

    discriminator: _Loss
    generator: _Loss


def _game(discriminator: _Loss, generator: _Loss) -> Adversarial:
    """Two functions of f32 `(r, f)` as a checked `Adversarial`."""

    def discriminator_loss(
        real_logits: Float[Array, " batch"], fake_logits: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        return discriminator(*_pair(real_logits=real_logits, fake_logits=fake_logits))

    def generator_loss(
        fake_logits: Float[Array, " batch"], real_logits: Float[Array, " batch"]
    ) -> Float[Array, " batch"]:
        return generator(*_pair(real_logits=real_logits, fake_logits=fake_logits))

    return Adversarial(discriminator_loss, generator_loss)


def _cross_entropy(r: Array, f: Array) -> Array:
    """`-log s(r) - log(1 - s(f))`, without overflow."""
    return jax.nn.softplus(-r) + jax.nn.softplus(f)


minimax = _game(_cross_entropy, lambda r, f: -jax.nn.softplus(f))
"""The zero-sum game of Goodfellow et al. 2014, eq. 1, in nats. Its generator saturates: where the
discriminator is sure of a fake, the gradient vanishes.

    discriminator   -log s(r) - log(1 - s(f))      2 log 2 at equilibrium, r = f = 0
    generator       log(1 - s(f))
"""

non_saturating = _game(_cross_entropy, lambda r, f: jax.nn.softplus(-f))
"""Minimax, with the generator of Goodfellow et al. 2014, section 3, in nats.

    discriminator   -log s(r) - log(1 - s(f))
    generator       -log s(f)
"""

least_squares = _game(
    lambda r, f: 0.5 * jnp.square(r - 1) + 0.5 * jnp.square(f),
    lambda r, f: 0.5 * jnp.square(f - 1),
)
"""Mao et al. 2017, eq. 9: labels a = 0 for fakes, b = 1 for real images, c = 1 for the generator.

    discriminator   (r - 1)^2 / 2 + f^2 / 2        1/4 at equilibrium, r = f = 1/2
    generator       (f - 1)^2 / 2
"""

hinge = _game(lambda r, f: jax.nn.relu(1 - r) + jax.nn.relu(1 + f), lambda r, f: -f)
"""Lim & Ye 2017; Miyato et al. 2018 (SNGAN), eq. 16 and 17.

    discriminator   max(0, 1 - r) + max(0, 1 + f)
    generator       -f
"""

wasserstein = _game(lambda r, f: f - r, lambda r, f: -f)
"""Arjovsky et al. 2017, eq. 2 and algorithm 1: minus the discriminator's mean estimates the
Wasserstein distance, up to the critic's Lipschitz constant, which a penalty must bound.

    discriminator   f - r
    generator       -f
"""

relativistic_average = _game(
    lambda r, f: _cross_entropy(r - jnp.mean(f), f - jnp.mean(r)),
    lambda r, f: _cross_entropy(f - jnp.mean(r), r - jnp.mean(f)),
)
"""RaSGAN of Jolicoeur-Martineau 2018, in nats: is it more real than the other side on average?

    discriminator   -log s(r - mean(f)) - log(1 - s(f - mean(r)))
    generator       -log s(f - mean(r)) - log(1 - s(r - mean(f)))

The means are over the logits given, and carry gradients. Under `jit` that is the global batch, on
any number of devices; under `pmap` each device's own part of it, so the loss depends on their
number.
"""

ADVERSARIAL: Mapping[str, Adversarial] = MappingProxyType(
    {
        "minimax": minimax,
        "non_saturating": non_saturating,
        "least_squares": least_squares,
        "hinge": hinge,
        "wasserstein": wasserstein,
        "relativistic_average": relativistic_average,
    }
)
"""The games by name, for command lines; see `adversarial`."""


def adversarial(name: str) -> Adversarial:
    """The game of a name.

    Args:
        name: A key of `ADVERSARIAL`.

    Returns:
        The two losses of the game.

    Raises:
        ValueError: The name is unknown.
    """
    check_choice("name", name, tuple(ADVERSARIAL))
    return ADVERSARIAL[name]


def gradient_penalty(
    critic: Critic,
    real: Float[Array, "batch *dims"],
    fake: Float[Array, "batch *dims"],
    key: Key[Array, ""],
    target: float = 1.0,
) -> Float[Array, " batch"]:
    """`(|grad critic(x)| - target)^2` at `x = u real + (1 - u) fake`, u ~ U[0, 1) per example.

    Gulrajani et al. 2017, eq. 3; its weight, 10 in the paper, multiplies outside. Where the
    critic's gradient is exactly zero, the norm's derivative is taken as 0.

        >>> critic = lambda x: 2.0 * x[:, 0]  # its gradient's norm is 2
        >>> gradient_penalty(critic, jnp.ones((1, 3)), jnp.zeros((1, 3)), jax.random.key(0))
        Array([1.], dtype=float32)

    Args:
        critic: Function from images [B, ...] to logits [B], twice differentiable in reverse mode.
            The gradients are those of the sum of the logits: where it mixes examples, by a
            minibatch standard deviation, each has what the others' logits add (as in StyleGAN2).
            Batch normalization makes the penalty meaningless.
        real: Data.
        fake: Samples, as many as data.
        key: Key that u is drawn with.
        target: Norm that is not penalized, at least 0.

    Returns:
        The penalty of each example, f32[B].

    Raises:
        ValueError: `real` and `fake` differ in shape or are not floats, `target` is negative, or
            the critic's output is not of shape [B].
    """
    _check_target(target)
    _check_images("real", real)
    _check_images("fake", fake)
    check_same_shape(real=real, fake=fake)
    u = jax.random.uniform(key, (real.shape[0],)).reshape(-1, *(1,) * (real.ndim - 1))
    x = u * _f32(real) + (1 - u) * _f32(fake)
    return jnp.square(_norm(_squared_gradient(critic, x)) - target)


def dragan_penalty(
    critic: Critic,
    real: Float[Array, "batch *dims"],
    key: Key[Array, ""],
    target: float = 1.0,
    scale: float = 0.5,
) -> Float[Array, " batch"]:
    """`(|grad critic(x)| - target)^2` around the data, at `x = real + a scale std(real) u`.

    Here u ~ U[0, 1) for every number of an image, a ~ U[0, 1) for every image, and std is over the
    whole batch given (under `pmap`, each device's). Kodali et al. 2017 (DRAGAN) write Gaussian
    noise; their code has uniform noise of scale 0.5, at a place between the image and its noisy
    copy. The weight, 10 in theirs, multiplies outside.

    Args:
        critic: Function from images [B, ...] to logits [B], see `gradient_penalty`.
        real: Data.
        key: Key that u and a are drawn with.
        target: Norm that is not penalized, at least 0.
        scale: Greatest noise, in standard deviations of the data, at least 0.

    Returns:
        The penalty of each example, f32[B].

    Raises:
        ValueError: `real` is not a batch of floats, `target` or `scale` is negative, or the
            critic's output is not of shape [B].
    """
    _check_target(target)
    if not scale >= 0:
        raise ValueError(f"scale must not be negative, got {scale}")
    _check_images("real", real)
    x = _f32(real)
    key_u, key_a = jax.random.split(key)
    u = jax.random.uniform(key_u, (x.size,)).reshape(x.shape)  # flat draws compile faster
    a = jax.random.uniform(key_a, (x.shape[0],)).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.square(_norm(_squared_gradient(critic, x + a * scale * jnp.std(x) * u)) - target)


def r1_penalty(critic: Critic, real: Float[Array, "batch *dims"]) -> Float[Array, " batch"]:
    """`|grad critic(real)|^2 / 2` (Mescheder et al. 2018, eq. 9).

    The paper's gamma (10 there) multiplies outside; the half is inside.

    Args:
        critic: Function from images [B, ...] to logits [B], see `gradient_penalty`.
        real: Data.

    Returns:
        The penalty of each example, f32[B].

    Raises:
        ValueError: `real` is not a batch of floats, or the critic's output is not of shape [B].
    """
    _check_images("real", real)
    return 0.5 * _squared_gradient(critic, _f32(real))


def r2_penalty(critic: Critic, fake: Float[Array, "batch *dims"]) -> Float[Array, " batch"]:
    """`|grad critic(fake)|^2 / 2` (Mescheder et al. 2018, eq. 10).

    The paper's gamma (10 there) multiplies outside; the half is inside.

    Args:
        critic: Function from images [B, ...] to logits [B], see `gradient_penalty`.
        fake: Samples.

    Returns:
        The penalty of each example, f32[B].

    Raises:
        ValueError: `fake` is not a batch of floats, or the critic's output is not of shape [B].
    """
    _check_images("fake", fake)
    return 0.5 * _squared_gradient(critic, _f32(fake))


def consistency_penalty(
    logits: Float[Array, " batch"], logits_augmented: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """`(D(x) - D(T(x)))^2` for an augmentation T: CR-GAN (Zhang et al. 2020), on the last layer.

    The weight, 10 in the paper, multiplies outside.

    Args:
        logits: Logits of images.
        logits_augmented: Logits of the same images, augmented.

    Returns:
        The penalty of each example, f32[B].

    Raises:
        ValueError: The arguments are not floats of one shape [B].
    """
    logits, logits_augmented = _pair(logits=logits, logits_augmented=logits_augmented)
    return jnp.square(logits - logits_augmented)


def augmentation_kl(
    mean: Float[Array, "batch dims"], log_sigma: Float[Array, "batch dims"]
) -> Float[Array, " batch"]:
    """`mean_i (mu_i^2 + sigma_i^2 - 1) / 2 - log sigma_i`, of conditioning augmentation.

    StackGAN (Zhang et al. 2017, eq. 2): KL(N(mu, sigma^2) || N(0, I)) of the Gaussian that a
    condition's code is drawn from. As in the authors' code it is the *mean* over the dimensions,
    where a divergence is their sum; its weight, 2 in theirs, multiplies outside.

    Args:
        mean: Mean of the code.
        log_sigma: Logarithm of its standard deviation.

    Returns:
        The penalty of each example, f32[B], nats a dimension.

    Raises:
        ValueError: The arguments are not floats of one shape [B, D].
    """
    for name, value in (("mean", mean), ("log_sigma", log_sigma)):
        if value.ndim != 2 or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{name} must be floats of shape [B, D], got {_of(value)}")
    check_same_shape(mean=mean, log_sigma=log_sigma)
    return jnp.mean(gaussian_kl(_f32(mean), 2 * _f32(log_sigma), 0.0, 0.0), axis=1)


def discriminator_accuracy(
    real_logits: Float[Array, " batch"],
    fake_logits: Float[Array, " batch"],
    threshold: float | Float[Array, ""] = 0.0,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Is a real example above the threshold, a fake one below it?

    Args:
        real_logits: Logits of data.
        fake_logits: Logits of samples, as many as data.
        threshold: Logit at which the discriminator is undecided: 0, or 0.5 for `least_squares`. The
            scores of `wasserstein` and `relativistic_average` have no such place.

    Returns:
        1.0 or 0.0 for each real and for each fake example, each f32[B].

    Raises:
        ValueError: The logits are not floats of one shape [B], or the threshold is no scalar.
    """
    real_logits, fake_logits = _pair(real_logits=real_logits, fake_logits=fake_logits)
    check_same_shape(number=0.0, threshold=threshold)
    return _f32(real_logits > threshold), _f32(fake_logits < threshold)


def _squared_gradient(critic: Critic, x: Array) -> Float[Array, " batch"]:
    """`|grad critic(x)|^2` of each example."""

    def total(x):
        logits = critic(x)
        if logits.shape != x.shape[:1]:
            raise ValueError(
                f"critic must return logits of shape {x.shape[:1]} for images of shape {x.shape},"
                f" got shape {logits.shape}"
            )
        return jnp.sum(_f32(logits))

    return jnp.sum(jnp.square(jax.grad(total)(x)).reshape(x.shape[0], -1), axis=1)


def _norm(squared: Array) -> Array:
    """The square root, with derivative 0 instead of infinity at 0."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def _pair(**logits: Array) -> list[Array]:
    for name, value in logits.items():
        if value.ndim != 1 or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{name} must be floats of shape [B], got {_of(value)}")
    check_same_shape(**logits)
    return [_f32(value) for value in logits.values()]


def _check_images(name: str, images: Array) -> None:
    if images.ndim < 2 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats of shape [B, ...], got {_of(images)}")


def _check_target(target: float) -> None:
    if not target >= 0:
        raise ValueError(f"target must not be negative, got {target}")


def _of(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _f32(x: Array) -> Array:
    return jnp.asarray(x, jnp.float32)
