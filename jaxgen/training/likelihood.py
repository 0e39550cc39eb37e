"""The likelihood of held-out data, reported in one form for every family."""

from typing import NamedTuple

from jaxgen.core import Bound
from jaxgen.losses.reduce import bits_per_dim


class HeldOutLikelihood(NamedTuple):
    """The mean of -log p(x) over held-out examples, with its protocol.

    Attributes:
        nats: Mean of -log p(x) in nats an example; an upper bound of it where the family's
            `log_prob` is a lower bound of log p(x).
        standard_error: Standard error of the mean, from the spread over the examples; None for a
            single example.
        bits_per_dim: Mean of -log p(x) in bits for each number of an example; None unless the data
            are of 8 bits.
        num_examples: Number of examples.
        bound: Kind of the likelihood: "exact", "ELBO", "IWAE-K" or "variational bound".
        dequantization: Noise added to the data: "none", "uniform" or "learned".
        given: Entry of the batch that the examples are conditional on, or None.
        data: Data set and split.
    """

    nats: float
    standard_error: float | None
    bits_per_dim: float | None
    num_examples: int
    bound: str
    dequantization: str
    given: str | None
    data: str


def likelihood(
    bound: Bound, *, nats: float, standard_error: float | None, num_examples: int, data: str
) -> HeldOutLikelihood:
    r"""The likelihood that a family's `log_prob` gives, with its protocol.

    $$bits/dim = \frac{nats}{D \ln 2}$$

    Args:
        bound: Bound that the family's `log_prob` is.
        nats: Mean of `-log_prob` over the examples, in nats.
        standard_error: Standard error of the mean, or None.
        num_examples: Number of examples.
        data: Data set and split of the examples.

    Raises:
        ValueError: If there are no examples.

    Examples:
        >>> bound = Bound("exact", num_dims=64, eight_bit=True)
        >>> result = likelihood(
        ...     bound, nats=88.72284, standard_error=1.0, num_examples=9, data="test"
        ... )
        >>> round(result.bits_per_dim, 4)
        2.0
    """
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    bits = float(bits_per_dim(nats, bound.num_dims)) if bound.eight_bit else None
    return HeldOutLikelihood(
        nats,
        standard_error,
        bits,
        num_examples,
        bound.kind,
        bound.dequantization,
        bound.given,
        data,
    )
