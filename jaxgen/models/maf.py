"""Masked and inverse autoregressive flows on vectors."""

from jax.typing import DTypeLike

from jaxgen.models.bijectors import ActNorm, Bijector, Invert, Permute, Repeat, Reverse, chain
from jaxgen.models.coupling import Affine, Transform
from jaxgen.models.made import MaskedAutoregressive


def maf(
    num_layers: int = 5,
    hidden: tuple[int, ...] = (64, 64),
    *,
    transform: Transform | None = None,
    shuffle: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """The masked autoregressive flow of Papamakarios et al. 2017: quick densities, slow samples.

    Each layer is `ActNorm` (in the place of the paper's batch normalization), a
    `MaskedAutoregressive` and another order of the variables.

    Args:
        num_layers: layers.
        hidden: widths of each MADE's hidden layers.
        transform: of each variable; `Affine()` by default, `jaxgen.models.splines.Spline()` for an
            autoregressive spline flow.
        shuffle: random orders; otherwise each layer's is the reverse of the one before it.
        remat: recompute within layers for the gradient, to save memory.
        dtype: of the networks; None for the data's.

    Returns:
        A bijector of f32[B, D].

    Raises:
        ValueError: an argument out of its range.
    """
    order = Permute() if shuffle else Reverse()
    layer = chain(ActNorm(), MaskedAutoregressive(transform or Affine(), hidden, dtype), order)
    return Repeat(layer, num_layers, remat)


def iaf(
    num_layers: int = 5,
    hidden: tuple[int, ...] = (64, 64),
    *,
    transform: Transform | None = None,
    shuffle: bool = False,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """The inverse autoregressive flow of Kingma et al. 2016: quick samples, slow densities.

    `maf` turned round. Samples and their densities take one pass of the networks; the density of
    given data takes D of them, and so does a training step on data.

    Args:
        num_layers: layers.
        hidden: widths of each MADE's hidden layers.
        transform: of each variable, as `maf`'s.
        shuffle: random orders; otherwise each layer's is the reverse of the one before it.
        remat: recompute within layers for the gradient, to save memory.
        dtype: of the networks; None for the data's.

    Returns:
        A bijector of f32[B, D].

    Raises:
        ValueError: an argument out of its range.
    """
    return Invert(
        maf(num_layers, hidden, transform=transform, shuffle=shuffle, remat=remat, dtype=dtype)
    )
