"""Masked and inverse autoregressive flows on vectors."""

from collections.abc import Callable

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxgen.models.bijectors.algebra import (
    ActNorm,
    Bijector,
    Invert,
    Permute,
    Repeat,
    Reverse,
    chain,
)
from jaxgen.models.bijectors.coupling import Affine, Transform
from jaxgen.models.bijectors.made import MaskedAutoregressive


def maf(
    num_layers: int = 5,
    hidden: tuple[int, ...] = (64, 64),
    *,
    transform: Transform | None = None,
    shuffle: bool = False,
    activation: Callable[[Array], Array] = nn.silu,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """The masked autoregressive flow of Papamakarios et al. 2017: quick densities, slow samples.

    Each layer is `ActNorm` (in the place of the paper's batch normalization), a
    `MaskedAutoregressive` and another order of the variables.

    Args:
        num_layers: Number of layers.
        hidden: Widths of each MADE's hidden layers.
        transform: Transform of each variable; `Affine()` by default,
            `jaxgen.models.bijectors.splines.Spline()` for an autoregressive spline flow.
        shuffle: Whether the orders are random; otherwise each layer's is the reverse of the one
            before it.
        activation: Function after each hidden layer.
        remat: Whether to recompute within layers for the gradient, to save memory.
        dtype: Type of the networks' layers but the first and the last; None for the data's.

    Returns:
        A bijector of f32[B, D].

    Raises:
        ValueError: An argument out of its range.
    """
    order = Permute() if shuffle else Reverse()
    masked = MaskedAutoregressive(transform or Affine(), hidden, dtype, activation)
    layer = chain(ActNorm(), masked, order)
    return Repeat(layer, num_layers, remat)


def iaf(
    num_layers: int = 5,
    hidden: tuple[int, ...] = (64, 64),
    *,
    transform: Transform | None = None,
    shuffle: bool = False,
    activation: Callable[[Array], Array] = nn.silu,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """The inverse autoregressive flow of Kingma et al. 2016: quick samples, slow densities.

    `maf` turned round. Samples and their densities take one pass of the networks; the density of
    given data takes D of them, and so does a training step on data.

    Args:
        num_layers: Number of layers.
        hidden: Widths of each MADE's hidden layers.
        transform: Transform of each variable, as `maf` takes it.
        shuffle: Whether the orders are random; otherwise each layer's is the reverse of the one
            before it.
        activation: Function after each hidden layer.
        remat: Whether to recompute within layers for the gradient, to save memory.
        dtype: Type of the networks' layers but the first and the last; None for the data's.

    Returns:
        A bijector of f32[B, D].

    Raises:
        ValueError: An argument out of its range.
    """
    return Invert(
        maf(
            num_layers,
            hidden,
            transform=transform,
            shuffle=shuffle,
            activation=activation,
            remat=remat,
            dtype=dtype,
        )
    )
