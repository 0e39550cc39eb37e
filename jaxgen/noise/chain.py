"""The discrete chain of DDPM: its betas, all constants that follow, and the chain of fewer steps.

The forward process is `q(x_t | x0) = N(alpha_t x0, sigma_t^2 I)`, variance preserving, with
`alpha_t^2 = alphas_cumprod[t] = sigmoid(log_snr[t])` and `sigma_t^2 = sigmoid(-log_snr[t])`. A
chain has `T` noise levels, `t = 0` (almost clean) to `T - 1` (almost pure noise).

    ddpm = chain(cosine_betas(1000))
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxgen.checks import check_batch, check_same_shape
from jaxgen.noise.levels import Levels, Posterior
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import Level, expand
from jaxgen.noise.spacing import NumSteps, Spacing, trailing


class Chain(NamedTuple):
    """The constants of a chain of T Gaussian steps, f32[T] each, indexed by `t` in 0..T-1.

    A pytree: close over it or pass it through `jit`. Like `jaxgen.noise.process.Process` it gives
    the level of a time, and starts from noise of the deviation `prior_std`. `1 - alphas_cumprod`
    has a field of its own because float32 subtraction loses it where t is small. The posterior is
    `q(x_{t-1} | x_t, x0) = N(posterior_x0_coef x0 + posterior_xt_coef x_t, posterior_variance)`
    (Ho et al. 2020, eq. 6-7).

    Attributes:
        betas: The variance added by step t.
        alphas_cumprod: The signal's variance, `prod_{s <= t} (1 - betas[s])`.
        one_minus_alphas_cumprod: The noise's variance.
        log_snr: The log signal-to-noise ratio `log(alphas_cumprod / one_minus_alphas_cumprod)`.
        posterior_x0_coef: The factor of the data in the posterior's mean,
            `sqrt(alphas_cumprod[t-1]) betas[t] / one_minus_alphas_cumprod[t]`.
        posterior_xt_coef: The factor of the noisy example in it,
            `sqrt(1 - betas[t]) one_minus_alphas_cumprod[t-1] / one_minus_alphas_cumprod[t]`.
        posterior_log_variance: The log of `betas[t] one_minus_alphas_cumprod[t-1] /
            one_minus_alphas_cumprod[t]`. That is log 0 at t = 0, where the entry of t = 1 stands in
            (and `betas[0]` in a chain of one step), as in the authors' code.
    """

    betas: Float[Array, " num_steps"]
    alphas_cumprod: Float[Array, " num_steps"]
    one_minus_alphas_cumprod: Float[Array, " num_steps"]
    log_snr: Float[Array, " num_steps"]
    posterior_x0_coef: Float[Array, " num_steps"]
    posterior_xt_coef: Float[Array, " num_steps"]
    posterior_log_variance: Float[Array, " num_steps"]

    @property
    def num_timesteps(self) -> int:
        """The number of noise levels T."""
        return self.betas.shape[0]

    @property
    def prior_std(self) -> float:
        """The deviation of the noise that sampling starts from."""
        return 1.0

    def at(self, t: Integer[Array, "*levels"]) -> Level:
        """The noise level of each timestep, which a network knows by its number."""
        signal, noise = jnp.asarray(self.alphas_cumprod), jnp.asarray(self.one_minus_alphas_cumprod)
        index = jnp.asarray(t).astype(jnp.int32)  # a byte cannot be compared with T
        return Level(jnp.sqrt(signal[index]), jnp.sqrt(noise[index]), t)

    def posterior(self, t: Integer[Array, "*levels"]) -> Posterior:
        """The constants of `q(x_{t-1} | x_t, x0)` at each timestep."""
        constants = (
            self.posterior_x0_coef,
            self.posterior_xt_coef,
            self.posterior_log_variance,
            self.betas,
        )
        index = jnp.asarray(t).astype(jnp.int32)
        return Posterior(*(jnp.asarray(values)[index] for values in constants))


# (posterior of each example, what the network says) -> the log-variance of a reverse step,
# [B, ...] or [B, 1, ...]
Variance = Callable[[Posterior, Denoised], Float[Array, "batch *dims"]]


def small_variance(posterior: Posterior, denoised: Denoised) -> Float[Array, "batch *ones"]:
    """The posterior's own variance: right if the data were a single point (Ho et al. 2020, 3.2)."""
    return expand(posterior.log_variance, denoised.x0.ndim)


def large_variance(posterior: Posterior, denoised: Denoised) -> Float[Array, "batch *ones"]:
    """The added variance, `betas[t]`: right if the data were standard Gaussian (Ho et al. 2020).

    At the last step, which leads to clean data, it is the small one, as in the authors' code.
    """
    # xt_coef is 0 too where x_t is noise alone, which is the first step, not the last.
    last = (posterior.xt_coef == 0) & (posterior.added < 1)
    log_variance = jnp.where(last, posterior.log_variance, jnp.log(posterior.added))
    return expand(log_variance, denoised.x0.ndim)


def learned_variance(posterior: Posterior, denoised: Denoised) -> Float[Array, "batch *dims"]:
    """Between the small and the large one, as the network says (Nichol & Dhariwal 2021, eq. 15).

    `log variance = f log betas[t] + (1 - f) log small`, with `f = (u + 1) / 2` and u the network's
    further channels.

    Raises:
        ValueError: if the network's output has no further channels, or not as many as the data.
    """
    shape = None if denoised.extra is None else denoised.extra.shape
    if denoised.extra is None or shape != denoised.x0.shape:
        raise ValueError(
            f"with a learned variance the network's output must have twice the channels of x_t: "
            f"for the variance further ones of shape {denoised.x0.shape}, got {shape}"
        )
    ndim = denoised.x0.ndim
    log_large, log_small = (
        expand(jnp.log(posterior.added), ndim),
        expand(posterior.log_variance, ndim),
    )
    fraction = 0.5 * (denoised.extra.astype(jnp.float32) + 1)
    return fraction * log_large + (1 - fraction) * log_small


def posterior_mean(
    posterior: Posterior, x0: Float[Array, "batch *dims"], x_t: Float[Array, "batch *dims"]
) -> Float[Array, "batch *dims"]:
    """The mean of `q(x_s | x_t, x0)`; at the data that a network predicts, the reverse step's mean.

    Args:
        posterior: The posterior of each example.
        x0: Data, true or predicted.
        x_t: Noisy data.

    Raises:
        ValueError: Data of different shapes, or other numbers of posteriors than examples.
    """
    check_same_shape(x0=x0, x_t=x_t)
    check_batch(len(x_t), x0_coef=posterior.x0_coef, xt_coef=posterior.xt_coef)
    return expand(posterior.x0_coef, x_t.ndim) * x0 + expand(posterior.xt_coef, x_t.ndim) * x_t


def linear_betas(
    num_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float[np.ndarray, " num_steps"]:
    """`T` betas evenly spaced from `beta_start` to `beta_end` (Ho et al. 2020, section 4).

    The defaults are meant for 1000 steps; multiply both by `1000 / num_steps` for other lengths.

    Args:
        num_steps: The number of steps T, at least 1.
        beta_start: The first beta, in (0, 1).
        beta_end: The last beta, in (0, 1).

    Returns:
        float64 [num_steps], for `chain`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_beta_range(num_steps, beta_start, beta_end)
    return np.linspace(beta_start, beta_end, num_steps, dtype=np.float64)


def root_linear_betas(
    num_steps: int, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Float[np.ndarray, " num_steps"]:
    """`T` betas whose roots are evenly spaced, called linear in the code of latent diffusion.

    The defaults are those of its text-to-image model (Rombach et al. 2022), of 1000 steps; its
    models of faces and of ImageNet go from 0.0015 to 0.0195.

    Args:
        num_steps: The number of steps T, at least 1.
        beta_start: The first beta, in (0, 1).
        beta_end: The last beta, in (0, 1).

    Returns:
        float64 [num_steps], for `chain`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_beta_range(num_steps, beta_start, beta_end)
    return np.square(np.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=np.float64))


def cosine_betas(
    num_steps: int, s: float = 0.008, max_beta: float = 0.999
) -> Float[np.ndarray, " num_steps"]:
    """Betas of `alphas_cumprod(u) = cos^2((u + s) / (1 + s) * pi / 2)`, u = (t + 1) / T.

    `betas[t] = min(1 - alphas_cumprod((t + 1) / T) / alphas_cumprod(t / T), max_beta)` (Nichol &
    Dhariwal 2021, eq. 17).

    Args:
        num_steps: The number of steps T, at least 1.
        s: The offset, at least 0, that keeps the first betas from being too small.
        max_beta: The cap of the last betas, in (0, 1).

    Returns:
        float64 [num_steps], for `chain`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_num_steps(num_steps)
    if not 0 <= s < math.inf:
        raise ValueError(f"s must be finite and at least 0, got {s}")
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must lie in (0, 1), got {max_beta}")
    u = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    alphas_cumprod = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], max_beta)


def sigmoid_betas(
    num_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float[np.ndarray, " num_steps"]:
    """Betas that rise along a sigmoid: `start + (end - start) * sigmoid(u)`, u from -6 to 6.

    The schedule of GeoDiff (Xu et al. 2022). The ends themselves are reached to 0.25% of the range.

    Args:
        num_steps: The number of steps T, at least 1.
        beta_start: The lower limit, in (0, 1).
        beta_end: The upper limit, in (0, 1).

    Returns:
        float64 [num_steps], for `chain`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check_beta_range(num_steps, beta_start, beta_end)
    u = np.linspace(-6, 6, num_steps, dtype=np.float64)
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-u))


def zero_terminal_snr(betas: Any) -> Float[np.ndarray, " num_steps"]:
    """Betas of the same shape whose last level is noise alone (Lin et al. 2024, algorithm 1).

    `sqrt(alphas_cumprod)` is moved and stretched so that its last value is 0 and its first stays:
    the last beta is 1. The network must predict v or the data there, for of eps nothing follows
    about them; samplers must start at T - 1 (`jaxgen.noise.spacing.trailing` or `linspace`).

    Args:
        betas: The betas [T] of another schedule, T at least 2, each in (0, 1).

    Returns:
        float64 [T], for `chain`.

    Raises:
        ValueError: if `betas` is not a vector of two or more numbers in (0, 1).
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size < 2 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"betas must be two or more numbers in (0, 1), got {betas}")
    root = np.exp(0.5 * np.cumsum(np.log1p(-betas)))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    signal = np.square(root)
    return np.concatenate([betas[:1], 1 - signal[1:] / signal[:-1]])


def chain(betas: Any) -> Chain:
    """All constants of the chain with these betas.

    Computed in float64 on the host, from `log(1 - beta)` by `expm1` and `log1p`, then rounded once
    to float32, so that every field is right to float32 precision at both ends of the chain.

    Args:
        betas: The betas [T], one-dimensional, each in (0, 1); the last may be 1, where `x_{T-1}` is
            noise alone (`zero_terminal_snr`).

    Returns:
        The chain, of NumPy float32 arrays: no accelerator is touched until it is used.

    Raises:
        ValueError: if `betas` is not a non-empty vector of such numbers, or if float32 cannot hold
            the chain (the signal underflows).

    Examples:
        >>> ddpm = chain(linear_betas(1000))
        >>> ddpm.num_timesteps, ddpm.at(jnp.array([0, 999])).time
        (1000, Array([  0, 999], dtype=int32))
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a non-empty vector, got shape {betas.shape}")
    wrong = ~((betas > 0) & (betas < 1))  # also catches NaN
    ends_in_noise = betas.size > 1 and betas[-1] == 1
    wrong[-1] &= not ends_in_noise
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"betas must lie in (0, 1), got betas[{first}] = {betas[first]}")
    with np.errstate(divide="ignore"):
        log_alphas = np.log1p(-betas)
    tiny = float(np.finfo(np.float32).tiny)
    log_signal = log_alphas[: len(betas) - ends_in_noise].sum()
    if log_signal < math.log(tiny) or betas.min() < tiny:
        raise ValueError(
            "betas make a chain beyond float32: its last alphas_cumprod is "
            f"exp({log_signal:.4g}) and its least beta {betas.min():.4g}, and both must be "
            f"at least {tiny:.4g}; use fewer steps or other betas"
        )
    constants = _assemble(log_alphas, np.cumsum(log_alphas), np)
    return Chain(*(field.astype(np.float32) for field in constants))


def respace(chain: Chain, timesteps: Int[Array, " num_steps"]) -> Chain:
    """The shorter chain that visits only `timesteps` and has the same marginals there.

    Its betas are `1 - alphas_cumprod[t_i] / alphas_cumprod[t_{i-1}]` (Nichol & Dhariwal 2021,
    section 4), from sums of `log(1 - beta)`, in which nothing cancels.

    Args:
        chain: The chain of T steps.
        timesteps: The timesteps that are kept, increasing, in 0..T-1; entries that repeat T - 1 are
            padding, and what the result holds for them has no meaning. Ask the denoiser at
            `timesteps[i]`, the result at `i`.

    Returns:
        The chain of `len(timesteps)` steps, as JAX arrays.
    """
    step_of = jnp.searchsorted(timesteps, jnp.arange(chain.num_timesteps))
    log_alphas = jax.ops.segment_sum(
        jnp.log1p(-jnp.asarray(chain.betas)), step_of, num_segments=timesteps.shape[0]
    )
    log_alphas_cumprod = jax.nn.log_sigmoid(jnp.asarray(chain.log_snr)[timesteps])
    return _assemble(log_alphas, log_alphas_cumprod, jnp)


def levels_of(
    chain: Chain, num_steps: NumSteps | None = None, spacing: Spacing = trailing
) -> Levels:
    """The levels that a sampler of K steps visits on its way through a chain, to clean data.

    Args:
        chain: The chain of T steps.
        num_steps: The number of steps K, from 1 to T; None for T. A traced value is not checked.
        spacing: The choice of the timesteps, see `jaxgen.noise.spacing`.

    Returns:
        The levels, noisiest first, with the constants of the respaced chain.

    Raises:
        ValueError: if `num_steps` is out of range.
        TypeError: if `num_steps` is no integer.
    """
    length = chain.num_timesteps
    num_steps = length if num_steps is None else num_steps
    timesteps = spacing(length, num_steps)
    kept = respace(chain, timesteps)
    index = jnp.maximum(num_steps - 1 - jnp.arange(length), 0)
    level = kept.at(index)._replace(time=timesteps[index])
    clean = Level(jnp.float32(1), jnp.float32(0), timesteps[0])
    # Clean data come after the K levels; beyond them stands nothing that counts.
    ended = jnp.arange(length + 1) >= num_steps
    level = jax.tree.map(lambda v, end: jnp.where(ended, end, jnp.append(v, end)), level, clean)
    return Levels(level, kept.posterior(index), num_steps, num_steps == length)


def _assemble(log_alphas, log_alphas_cumprod, xp) -> Chain:
    """Every field from `log(1 - beta)` and its running sum, in NumPy or JAX (`xp`)."""
    betas = -xp.expm1(log_alphas)
    signal, noise = xp.exp(log_alphas_cumprod), -xp.expm1(log_alphas_cumprod)
    before = xp.concatenate([xp.zeros_like(log_alphas_cumprod[:1]), log_alphas_cumprod[:-1]])
    signal_before, noise_before = xp.exp(before), -xp.expm1(before)
    log_variance = xp.log(betas[1:]) + xp.log(noise_before[1:]) - xp.log(noise[1:])
    first = log_variance[:1] if len(betas) > 1 else xp.log(betas)
    return Chain(
        betas=betas,
        alphas_cumprod=signal,
        one_minus_alphas_cumprod=noise,
        log_snr=log_alphas_cumprod - xp.log(noise),
        posterior_x0_coef=xp.sqrt(signal_before) * betas / noise,
        posterior_xt_coef=xp.exp(0.5 * log_alphas) * noise_before / noise,
        posterior_log_variance=xp.concatenate([first, log_variance]),
    )


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")


def _check_beta_range(num_steps: int, beta_start: float, beta_end: float) -> None:
    _check_num_steps(num_steps)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < beta < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {beta}")
