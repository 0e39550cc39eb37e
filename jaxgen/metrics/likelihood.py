"""The likelihood of held-out data, said of every family in the same words."""

from typing import NamedTuple

from jaxgen.core import Bound
from jaxgen.losses.reduce import bits_per_dim


class Likelihood(NamedTuple):
    """The mean of -log p(x) over held-out examples, and what it is true for.

    Attributes:
        nats: an example. An upper bound of -log p(x) where the family's `log_prob` is a lower one
            of log p(x).
        standard_error: of that mean, from the spread over examples; None of a single one.
        bits_per_dim: the same in bits for each number of an example; None but for 8-bit data.
        num_examples: how many.
        bound: "exact", "ELBO", "IWAE-K" or "variational bound".
        dequantization: "none", "uniform" or "learned".
        given: what the examples are conditional on, or None.
        data: set and split.
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
) -> Likelihood:
    r"""What a family's `log_prob` found, with its protocol.

    $$bits/dim = \frac{nats}{D \ln 2}$$

    Args:
        bound: the family's.
        nats: mean of `-log_prob` over the examples.
        standard_error: of the mean, or None.
        num_examples: how many.
        data: their set and split.

    Raises:
        ValueError: no examples.

    Example:
        >>> bound = Bound("exact", num_dims=64, eight_bit=True)
        >>> found = likelihood(
        ...     bound, nats=88.72284, standard_error=1.0, num_examples=9, data="test"
        ... )
        >>> round(found.bits_per_dim, 4)
        2.0
    """
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    bits = float(bits_per_dim(nats, bound.num_dims)) if bound.eight_bit else None
    return Likelihood(
        nats,
        standard_error,
        bits,
        num_examples,
        bound.kind,
        bound.dequantization,
        bound.given,
        data,
    )
