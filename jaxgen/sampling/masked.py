"""Sequences of codes drawn in parallel, a few steps for all of them (Chang et al. 2022, MaskGIT).

Each step draws all codes that are not known yet, each by itself, and keeps those that the model is
surest of. Noise on how sure it is keeps samples from becoming all alike; it fades away.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxgen.distributions.elementwise import categorical_log_prob
from jaxgen.noise.masking import Schedule, cosine, lowest, num_masked
from jaxgen.sampling.autoregressive import check_completion, draw_categorical

Codes = Int[Array, "batch positions"]
Masked = Bool[Array, "batch positions"]
Predict = Callable[[Codes, Masked], Float[Array, "batch positions values"]]


def parallel_decode(
    predict: Predict,
    shape: tuple[int, int],
    key: Key[Array, ""],
    num_steps: int,
    *,
    schedule: Schedule = cosine,
    temperature: float = 1.0,
    choice_temperature: float | None = 4.5,
    given: Int[Array, "..."] | None = None,
    known: Bool[Array, "..."] | None = None,
) -> Codes:
    """Codes from all masked to none, in one compiled loop.

    Step t of T draws each masked code from the model's distribution, and keeps those of the
    greatest `log p(code) + choice_temperature (1 - t / T) g`, g of the standard Gumbel
    distribution. As many stay masked as `jaxgen.noise.masking.num_masked` says, each example's own
    number exactly; a code that was kept stays.

    Codes of one step are independent of each other given those before it, and what is likely is
    kept first: samples are sharper than the model's distribution. They follow it exactly where the
    order is random (a choice temperature of None) and there are as many steps as positions, or
    positions do not depend on each other.

    Args:
        predict: The model: `(codes, masked) -> logits` of every position, by the codes that are not
            masked.
        shape: Number of sequences and number of their positions.
        key: PRNG key of all draws.
        num_steps: Number T of steps, each a pass of the model, at least 1.
        schedule: Schedule of the masked share.
        temperature: Divisor of the logits, by which codes are drawn; at 0 the likeliest is taken.
        choice_temperature: Size of the noise on the choice; 0 for none, None for codes that are
            kept in random order.
        given: Codes to keep where `known` says so, or None.
        known: True where a code is given, or None.

    Returns:
        The codes; `NO_CLASS` where logits are NaN.

    Raises:
        ValueError: An argument out of its range, or `given` and `known` of wrong shapes or one
            without the other.
    """
    check_decoding(num_steps, temperature, choice_temperature)
    check_completion(given, known, shape)
    draw = draw_categorical(temperature)
    codes, masked = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
    if given is not None and known is not None:
        masked = ~jnp.asarray(known)
        codes = jnp.where(masked, codes, given.astype(jnp.int32))
    unknown = masked.sum(axis=1)

    def body(i: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, masked = carry
        key_codes, key_choice = jax.random.split(jax.random.fold_in(key, i))
        logits = predict(codes, masked).astype(jnp.float32)
        codes = jnp.where(masked, draw(key_codes, logits), codes)
        sureness = jax.random.gumbel(key_choice, (codes.size,)).reshape(codes.shape)
        if choice_temperature is not None:
            noise = choice_temperature * (1 - (i + 1) / num_steps) * sureness
            sureness = categorical_log_prob(codes, logits) + noise
        count = num_masked(schedule, i + 1, num_steps, unknown, masked.sum(axis=1))
        return codes, lowest(jnp.where(masked, sureness, jnp.inf), count)

    return jax.lax.fori_loop(0, num_steps, body, (codes, masked))[0]


def check_decoding(num_steps: int, temperature: float, choice_temperature: float | None) -> None:
    """Checks how codes are to be drawn, before anything is computed.

    Args:
        num_steps: Number of steps, at least 1.
        temperature: Divisor of the logits, at least 0 and finite.
        choice_temperature: Size of the noise on the choice, at least 0 and finite, or None.

    Raises:
        ValueError: An argument out of its range.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if choice_temperature is not None and not 0 <= choice_temperature < math.inf:
        raise ValueError(
            f"choice_temperature must be at least 0 and finite, or None, got {choice_temperature}"
        )
    draw_categorical(temperature)
