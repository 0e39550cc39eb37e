"""NICE and RealNVP: stacks of coupling layers, on vectors and on images."""

from functools import partial
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxgen.conditioning.base import Condition
from jaxgen.models.bijectors.algebra import (
    ActNorm,
    Bijector,
    Invert,
    LogDet,
    MultiScale,
    Repeat,
    Squeeze,
    chain,
)
from jaxgen.models.bijectors.conditioners import MLP, ResNet
from jaxgen.models.bijectors.coupling import (
    Additive,
    Affine,
    Conditioner,
    Coupling,
    Mask,
    ShiftScale,
    Split,
    Transform,
)
from jaxgen.models.bijectors.skip_resnet import SkipResNet


class Layer(Bijector):
    """One layer of NICE and RealNVP: an `ActNorm`, if wanted, and a coupling.

    Attributes:
        conditioner: Maker of the coupling's network, see `Coupling`.
        transform: Transform of the coupling.
        mask: Mask of the coupling.
        normalize: Whether there is an `ActNorm` before the coupling.
        tells_mask: Whether the coupling's network is told the mask, see `Coupling`.
    """

    conditioner: Conditioner
    transform: Transform
    mask: Mask
    normalize: bool = True
    tells_mask: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *dims"],
        condition: Condition | None = None,
        *,
        reverse: bool = False,
        swap: bool | Bool[Array, ""] = False,
    ) -> tuple[Float[Array, "batch *dims"], LogDet]:
        """Normalizes and moves what the mask, turned over with `swap`, does not let pass."""
        layer: Bijector = Coupling(
            self.conditioner, self.transform, self.mask, swap, self.tells_mask
        )
        if self.normalize:
            layer = chain(ActNorm(), layer)
        return layer(x, condition, reverse=reverse)


def alternating(
    num_couplings: int,
    conditioner: Conditioner,
    transform: Transform,
    mask: Mask,
    *,
    normalize: bool = True,
    tells_mask: bool = False,
    remat: bool = False,
) -> Bijector:
    """Couplings whose mask is turned over each time, in one compiled loop.

    Args:
        num_couplings: Number of couplings, at least 1.
        conditioner: Maker of each coupling's network, see `Coupling`.
        transform: Transform of each coupling.
        mask: Mask of the first coupling.
        normalize: Whether there is an `ActNorm` before each coupling.
        tells_mask: Whether the couplings' networks are told the mask, see `Coupling`.
        remat: Whether to recompute within couplings for the gradient, to save memory.

    Returns:
        A bijector of the shapes that the mask takes.

    Raises:
        ValueError: No couplings.
    """
    if num_couplings < 1:
        raise ValueError(f"num_couplings must be at least 1, got {num_couplings}")
    layer = Layer(conditioner, transform, mask, normalize, tells_mask)
    return Repeat(layer, num_couplings, remat, alternate=True)


def nice(
    num_couplings: int = 4,
    hidden: tuple[int, ...] = (64, 64),
    *,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """NICE on vectors (Dinh et al. 2015): additive couplings, then one scale for each variable.

    Args:
        num_couplings: Number of couplings, 4 in the paper.
        hidden: Widths of each conditioner's hidden layers.
        remat: Whether to recompute within couplings for the gradient, to save memory.
        dtype: Type of the conditioners' layers but the first and the last; None for the data's.

    Returns:
        A bijector of f32[B, D], D at least 2.

    Raises:
        ValueError: An argument out of its range.
    """
    conditioner = partial(MLP, hidden=hidden, dtype=dtype)
    couplings = alternating(
        num_couplings, conditioner, Additive(), "halves", normalize=False, remat=remat
    )
    return chain(couplings, ActNorm())


def realnvp(
    num_couplings: int = 8,
    hidden: tuple[int, ...] = (64, 64),
    *,
    bound: float = 3.0,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """RealNVP on vectors: affine couplings of one half and of the other.

    Args:
        num_couplings: Number of couplings.
        hidden: Widths of each conditioner's hidden layers.
        bound: Greatest size of the log-scales, see `Affine`.
        remat: Whether to recompute within couplings for the gradient, to save memory.
        dtype: Type of the conditioners' layers but the first and the last; None for the data's.

    Returns:
        A bijector of f32[B, D], D at least 2.

    Raises:
        ValueError: An argument out of its range.
    """
    conditioner = partial(MLP, hidden=hidden, dtype=dtype)
    return alternating(num_couplings, conditioner, Affine(bound), "halves", remat=remat)


def realnvp_image(
    num_levels: int = 2,
    width: int = 64,
    num_blocks: int = 8,
    *,
    num_couplings: int = 3,
    num_last: int = 4,
    skips: bool = False,
    diagonal: bool = False,
    bound: float = 2.0,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """RealNVP on images (Dinh et al. 2017, section 3.6).

    Every level but the last is couplings with checkerboard masks, a squeeze, couplings with channel
    masks, and half of the channels factored out; the last is couplings with checkerboard masks.
    `ActNorm` stands in the place of the paper's running batch normalization. Precede it with
    `Logit()`, as the paper does. The authors' code is `skips=True, diagonal=True`.

    Args:
        num_levels: Number of levels; the paper has 2 ("downscale only once") for CIFAR-10.
        width: Hidden channels of the first level's conditioners, doubled at each squeeze.
        num_blocks: Residual blocks of each conditioner.
        num_couplings: Couplings of each kind in a level, 3 in the paper.
        num_last: Couplings of the last level, 4 in the paper.
        skips: Whether the conditioners are those of the authors' code, `SkipResNet`, told the mask,
            which bound their log-scales themselves; else `ResNet`.
        diagonal: Whether each block of 2x2 pixels keeps its diagonal and factors out the other two,
            and channel masks part colours, as in the authors' code; else the first row is kept,
            and channel masks part rows.
        bound: Greatest size of the log-scales without skips, see `Affine`.
        remat: Whether to recompute within couplings for the gradient, to save memory.
        dtype: Type of the conditioners' layers but the first and the last; None for the data's.

    Returns:
        A bijector from images, whose sides 2^(num_levels - 1) divides, to a tuple of latents.

    Raises:
        ValueError: An argument out of its range.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}")

    def couplings(num: int, scale: int, mask: str) -> Bijector:
        size: dict[str, Any] = {"width": width * 2**scale, "num_blocks": num_blocks, "dtype": dtype}
        if not skips:
            return alternating(num, partial(ResNet, **size), Affine(bound), mask, remat=remat)
        board = mask == "checkerboard"
        network = partial(SkipResNet, rescaling=0.0 if board else 1.0, **size)
        return alternating(num, network, ShiftScale(), mask, tells_mask=board, remat=remat)

    def squeezed(inner: Bijector) -> tuple[Bijector, ...]:
        if not diagonal:
            return Squeeze(), inner
        return Squeeze("channels"), inner, Invert(Squeeze("channels")), Squeeze("diagonal")

    levels = [
        chain(
            couplings(num_couplings, level, "checkerboard"),
            *squeezed(couplings(num_couplings, level + 1, "halves")),
        )
        for level in range(num_levels - 1)
    ]
    levels.append(couplings(num_last, num_levels - 1, "checkerboard"))
    return MultiScale(tuple(levels), tuple(Split() for _ in levels[1:]))
