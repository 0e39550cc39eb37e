"""Losses of autoencoders and variational autoencoders: per example, in nats, terms named apart.

The terms of a bound are sums over an example's dimensions: pixels, channels and latents alike. To
average one of them (say the reconstruction, over pixels) while summing another is to train another
beta than one thinks. What is no likelihood says in its docstring what it sums or averages.

Log-likelihoods come from `jaxgen.distributions.likelihoods`, already summed.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxgen.checks import check_batch, check_choice, check_same_shape
from jaxgen.distributions.elementwise import gaussian_kl, gaussian_log_prob
from jaxgen.losses.reduce import weighted_mean

KERNELS = ("imq", "rbf")


def gaussian_kl_to_standard(
    mean: Float[Array, "batch *latent"], log_variance: Float[Array, "batch *latent"]
) -> Float[Array, " batch"]:
    """`KL(N(mean, e^log_variance) || N(0, I))`, in closed form, summed over the latents.

    `sum_j (e^v_j - 1 - v_j + mean_j^2) / 2` with v the log-variance (Kingma & Welling 2014,
    appendix B). For each latent by itself: `gaussian_kl(mean, log_variance, 0.0, 0.0)`.

    Args:
        mean: The mean of q(z | x).
        log_variance: The log of its variance, diagonal.

    Returns:
        f32[B], nats.

    Raises:
        ValueError: If mean and log-variance differ in shape.

    Examples:
        >>> gaussian_kl_to_standard(jnp.array([[0.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 2)))
        Array([0. , 2.5], dtype=float32)
    """
    check_same_shape(mean=mean, log_variance=log_variance)
    return _sum(gaussian_kl(mean, log_variance, 0.0, 0.0))


def gaussian_kl_by_sample(
    z: Float[Array, "batch *latent"],
    mean: Float[Array, "batch *latent"],
    log_variance: Float[Array, "batch *latent"],
) -> Float[Array, " batch"]:
    """`log q(z | x) - log N(z; 0, I)`, summed over the latents: one draw's estimate of the KL.

    Its mean over `z ~ q` is `gaussian_kl_to_standard`; a single one may be negative.

    Args:
        z: A sample of q(z | x), for gradients `mean + exp(log_variance / 2) * eps`.
        mean: The mean of q(z | x).
        log_variance: The log of its variance, diagonal.

    Returns:
        f32[B], nats.

    Raises:
        ValueError: If sample, mean and log-variance differ in shape.
    """
    check_same_shape(z=z, mean=mean, log_variance=log_variance)
    return _sum(gaussian_log_prob(z, mean, log_variance) - gaussian_log_prob(z, 0.0, 0.0))


def negative_elbo(
    log_likelihood: Float[Array, " batch"],
    kl: Float[Array, " batch"],
    beta: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
    """`-log p(x | z) + beta KL(q(z | x) || p(z))` (Kingma & Welling 2014, eq. 3; beta-VAE, Higgins
    et al. 2017, eq. 4).

    Only at beta = 1 is it a bound of -log p(x); the term "negative_elbo" is that bound always.

        >>> kl = gaussian_kl_to_standard(jnp.ones((1, 2)), jnp.zeros((1, 2)))
        >>> log_likelihood = jnp.array([-90.0])  # of the pixels, given the latent
        >>> loss, terms = negative_elbo(log_likelihood, kl, beta=kl_warmup(5_000, 10_000))
        >>> float(loss[0]), float(terms["negative_elbo"][0])
        (90.5, 91.0)

    Args:
        log_likelihood: `log p(x | z)` with z drawn from q, summed over pixels and channels.
        kl: The divergence from the prior, summed over latents; the true one, not that of
            `free_bits`.
        beta: Weight of the KL, 0 or more.

    Returns:
        The loss, f32[B], and its parts in nats, each f32[B]: "reconstruction" (`-log p(x | z)`),
        "kl" (without beta) and "negative_elbo".

    Raises:
        ValueError: If `beta` is a negative number or NaN, or no scalar, or the two terms are not of
            one shape [B].
    """
    check_batch(len(log_likelihood), log_likelihood=log_likelihood, kl=kl)
    check_same_shape(number=1.0, beta=beta)
    if not isinstance(beta, jax.Array) and not beta >= 0:
        raise ValueError(f"beta must be 0 or more, got {beta}")
    terms = {"reconstruction": -log_likelihood, "kl": kl, "negative_elbo": kl - log_likelihood}
    return beta * kl - log_likelihood, terms


def free_bits(
    kl_per_group: Float[Array, "batch *groups"],
    minimum: float,
    weight: Float[Array, " batch"] | Int[Array, " batch"] | Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """`sum_j max(minimum, mean_b KL_bj)`, the KL's stand-in in training.

    The objective with free bits of Kingma et al. 2016, appendix C (inverse autoregressive flow).

    As in the paper the floor holds for the *batch mean* of a group of latents, not for each
    example: what an example says in excess of another is not lost. A group below its floor adds
    `minimum` and no gradient. Given per example, so that the batch's mean is the formula above;
    under `pmap` the mean is that of a device's share of the batch.

        >>> kl = jnp.array([[0.01, 2.0]])  # [B, latents]
        >>> _, terms = negative_elbo(jnp.array([-90.0]), kl.sum(axis=1))  # what to report
        >>> terms["reconstruction"] + free_bits(kl, 0.1)  # what to train
        Array([92.1], dtype=float32)

    Args:
        kl_per_group: The KL of each latent, or its sum over each group of latents.
        minimum: The floor of each group, nats, 0 or more.
        weight: Weight of each example in the batch's mean; None for 1.

    Returns:
        f32[B], nats summed over the groups.

    Raises:
        ValueError: If `minimum` is negative or NaN, or the weights are not one for each example.
    """
    if not minimum >= 0:
        raise ValueError(f"minimum must be 0 or more nats, got {minimum}")
    kl = kl_per_group.reshape(kl_per_group.shape[0], -1)
    means = jax.vmap(weighted_mean, in_axes=(1, None))(kl, weight)
    return jnp.where(means[None] > minimum, kl, minimum).sum(axis=1)


def kl_warmup(step: int | Int[Array, ""], num_steps: int) -> Float[Array, ""]:
    """`min(step / num_steps, 1)`: the KL's weight, linear from 0 (Sønderby et al. 2016, section
    2.3; Bowman et al. 2016).

    Args:
        step: The updates done.
        num_steps: The length of the ramp in updates, at least 1.

    Returns:
        A weight from 0 to 1, f32 scalar, for `negative_elbo`'s beta.

    Raises:
        ValueError: If `num_steps` is less than 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return jnp.clip(jnp.asarray(step, jnp.float32) / num_steps, 0.0, 1.0)


def iwae_bound(log_weights: Float[Array, "num_samples batch"]) -> Float[Array, " batch"]:
    """`log((1 / K) sum_k w_k)`, a lower bound of log p(x) (Burda et al. 2016, eq. 8).

    In expectation it rises with K, from the ELBO at K = 1 towards log p(x).

    Args:
        log_weights: `log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x)`, z_k drawn from q,
            each term summed over an example's pixels or latents.

    Returns:
        f32[B], nats.

    Raises:
        ValueError: If `log_weights` is not [K, B] with K of at least 1.

    Examples:
        >>> iwae_bound(jnp.log(jnp.array([[0.1], [0.3]])))  # log 0.2
        Array([-1.609...], dtype=float32)
    """
    if log_weights.ndim != 2 or log_weights.shape[0] < 1:
        raise ValueError(
            "log_weights must be [K, B] with K (num_samples) at least 1, "
            f"got shape {log_weights.shape}"
        )
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(log_weights.shape[0])


def importance_bound(
    log_weights: Callable[[Key[Array, " chunk"]], Float[Array, "chunk batch"]],
    key: Key[Array, ""],
    num_samples: int,
    chunk: int,
) -> Float[Array, " batch"]:
    """`iwae_bound` of many samples in the memory of a few (Burda et al. 2016, eq. 8).

    Each sample has a key of its own, so that the result does not depend on `chunk` but by rounding.

    Args:
        log_weights: Keys, one a sample -> the samples' `log w`, [chunk, B].
        key: PRNG key.
        num_samples: K, at least 1.
        chunk: The samples in memory at a time, at least 1.

    Returns:
        f32[B], nats.

    Raises:
        ValueError: If `num_samples` or `chunk` is less than 1, or the log-weights are not
            [chunk, B].
    """
    if min(num_samples, chunk) < 1:
        raise ValueError(f"num_samples and chunk must be at least 1, got {num_samples} and {chunk}")
    num_chunks = -(-num_samples // min(chunk, num_samples))
    chunk = -(-num_samples // num_chunks)

    def add(total: Array | None, index: Array) -> Array:
        samples = index * chunk + jnp.arange(chunk)
        values = log_weights(jax.vmap(lambda i: jax.random.fold_in(key, i))(samples))
        if values.ndim != 2 or len(values) != chunk:
            raise ValueError(
                f"log_weights of {chunk} keys must be [{chunk}, B], got shape {values.shape}"
            )
        values = jnp.where((samples < num_samples)[:, None], values, -jnp.inf)
        of_chunk = jax.nn.logsumexp(values, axis=0)
        return of_chunk if total is None else jnp.logaddexp(total, of_chunk)

    total = add(None, jnp.int32(0))
    total = lax.fori_loop(1, num_chunks, lambda i, total: add(total, jnp.int32(i)), total)
    return total - math.log(num_samples)


def iwae_loss(log_weights: Float[Array, "num_samples batch"]) -> Float[Array, " batch"]:
    """`-iwae_bound(log_weights)`; at K = 1 the negative ELBO by one sample.

    Its gradient for the encoder fades beside its noise as K grows: see `dreg_loss`.

    Args:
        log_weights: The log-weights of K samples, see `iwae_bound`.

    Returns:
        f32[B], nats.

    Raises:
        ValueError: If `log_weights` is not [K, B] with K of at least 1.
    """
    return -iwae_bound(log_weights)


def dreg_loss(
    log_weights: Callable[[Array], Float[Array, "num_samples batch"]],
    z: Float[Array, "num_samples batch *latent"],
) -> Float[Array, " batch"]:
    """`iwae_loss` in value, with the doubly reparameterized gradient (Tucker et al. 2019).

    With `w~_k = w_k / sum_j w_j`, the gradients of the bound are

        encoder    sum_k w~_k^2 (d log w_k / d z_k) (d z_k / d encoder)
        decoder    sum_k w~_k d log w_k / d decoder, that of IWAE

    The encoder's equals IWAE's in expectation, of a variance that falls with K. It holds only if
    `log_weights` knows the encoder through z alone: inside it, stop the gradients of q's
    parameters (outside, where z is made, leave them).

        >>> from jaxgen.distributions.elementwise import gaussian_log_prob
        >>> mean, log_variance = jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3))  # [1, B, D]
        >>> eps = jax.random.normal(jax.random.key(0), (5, 2, 3))  # [K, B, D]
        >>> z = mean + jnp.exp(0.5 * log_variance) * eps
        >>> fixed = jax.lax.stop_gradient((mean, log_variance))
        >>> def log_weights(z):
        ...     log_q = gaussian_log_prob(z, *fixed).sum(axis=-1)
        ...     log_joint = -jnp.square(z).sum(axis=-1)  # yours: log p(x, z)
        ...     return log_joint - log_q  # [K, B]
        >>> dreg_loss(log_weights, z).shape
        (2,)

    `log_weights` is called twice on equal numbers, which `jit` makes one computation, provided that
    it is pure (dropout must have its key outside).

    Args:
        log_weights: `z -> log w`, [K, B], of which [k, b] depends on z[k, b] only.
        z: Reparameterized samples of q(z | x).

    Returns:
        f32[B], nats.

    Raises:
        ValueError: If `log_weights(z)` is not [K, B] with K of at least 1.
    """
    values = jax.lax.stop_gradient(log_weights(z))
    if values.shape != z.shape[:2]:
        raise ValueError(
            f"log_weights(z) must be [K, B] = {z.shape[:2]} for z of shape {z.shape}, "
            f"got {values.shape}"
        )
    # The bound itself brings one factor w~ to every gradient; z adds the encoder's second one.
    normalized = jax.nn.softmax(values, axis=0).reshape(values.shape + (1,) * (z.ndim - 2))
    return iwae_loss(log_weights(_scale_gradient(z, normalized)))


def maximum_mean_discrepancy(
    x: Float[Array, "num_x dims"],
    y: Float[Array, "num_y dims"],
    *,
    kernel: str = "imq",
    scale: float | None = None,
    unbiased: bool = True,
) -> Float[Array, ""]:
    """Squared MMD of two sets of points, `E k(x, x') + E k(y, y') - 2 E k(x, y)`.

    Between latents and draws of the prior it is the penalty of WAE (Tolstikhin et al. 2018,
    algorithm 2) and InfoVAE (Zhao et al. 2017, section 4.3). A scalar of the whole batch, without
    unit: add it to each example's loss. The kernels, d the distance:

        "imq"    c / (c + d^2), inverse multiquadric
        "rbf"    exp(-d^2 / c), Gaussian

    Args:
        x: Points, such as latents of a batch.
        y: Points, such as samples of the prior.
        kernel: The kernel, "imq" or "rbf".
        scale: The scale c, positive; None for 2 * dims, the expected d^2 of two standard Gaussian
            points.
        unbiased: Whether to leave out the pairs of a point with itself (the U-statistic: right in
            expectation, may be negative) or to keep them (the V-statistic: never negative, 0 of
            equal sets).

    Returns:
        A scalar.

    Raises:
        ValueError: If the kernel is unknown, `scale` not positive, the points differ in dimension
            or there are too few: 1 a set, 2 if unbiased.
    """
    check_choice("kernel", kernel, KERNELS)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be [N, D] and [M, D], got shapes {x.shape} and {y.shape}")
    least = 2 if unbiased else 1
    if min(x.shape[0], y.shape[0]) < least:
        raise ValueError(
            f"with unbiased={unbiased} x and y must hold at least {least} points, "
            f"got {x.shape[0]} and {y.shape[0]}"
        )
    c = 2 * x.shape[1] if scale is None else scale
    if not c > 0:
        raise ValueError(f"scale must be positive, got {scale}")

    def similarity(a, b):
        product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
        distance = jnp.square(a).sum(axis=1)[:, None] + jnp.square(b).sum(axis=1)[None]
        distance = jnp.maximum(distance - 2 * product, 0.0)
        return c / (c + distance) if kernel == "imq" else jnp.exp(-distance / c)

    def within(a):
        similarities = similarity(a, a)
        if not unbiased:
            return similarities.mean()
        num = a.shape[0]
        return (similarities.sum() - jnp.trace(similarities)) / (num * (num - 1))

    return within(x) + within(y) - 2 * similarity(x, y).mean()


@jax.custom_vjp
def _scale_gradient(z, scale):
    """z, whose gradient is `scale` times what it would be; the same z to XLA, bit for bit."""
    return z


def _scale_gradient_forward(z, scale):
    return z, scale


def _scale_gradient_backward(scale, gradient):
    return scale * gradient, jnp.zeros_like(scale)


_scale_gradient.defvjp(_scale_gradient_forward, _scale_gradient_backward)


def _sum(values: Array) -> Float[Array, " batch"]:
    return values.reshape(values.shape[0], -1).sum(axis=1)
