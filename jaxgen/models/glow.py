"""Glow: generative flow with invertible 1x1 convolutions."""

from functools import partial

from flax import linen as nn
from jax.typing import DTypeLike

from jaxgen.models.bijectors.algebra import (
    ActNorm,
    Bijector,
    MultiScale,
    Repeat,
    Squeeze,
    chain,
)
from jaxgen.models.bijectors.conditioners import ConvNet
from jaxgen.models.bijectors.coupling import (
    Additive,
    Affine,
    Coupling,
    LearnedPrior,
    Split,
    Transform,
)
from jaxgen.models.bijectors.linear import InvertibleLinear
from jaxgen.models.conv.layers import Conv


def glow(
    num_levels: int = 3,
    num_steps: int = 32,
    width: int = 512,
    *,
    coupling: str = "affine",
    lu: bool = True,
    bound: float = 2.0,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """Glow on images (Kingma and Dhariwal 2018, figure 2).

    A level is a squeeze and K steps, each `ActNorm`, an invertible 1x1 convolution and a coupling
    of half of the channels; between levels half of the channels is factored out. The priors of the
    latents are learned; a condition's vector goes into the couplings' networks and into the last
    prior.

    Args:
        num_levels: Number L of levels; the paper has 3 for CIFAR-10.
        num_steps: Number K of steps a level, 32 in the paper.
        width: Hidden channels of the couplings' networks, 512 in the paper.
        coupling: Kind of the couplings, "affine" or "additive".
        lu: Whether the 1x1 convolutions are kept as LU products.
        bound: Greatest size of the log-scales, see `Affine`.
        remat: Whether to recompute within steps for the gradient, to save memory.
        dtype: Type of the networks' layers but the first and the last; None for the data's.

    Returns:
        A bijector from images, whose sides 2^L divides, to a tuple of L latents.

    Raises:
        ValueError: An argument out of its range.

    Example:
        >>> flow = glow(2, 2, 8)
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
        >>> (z, log_det), variables = flow.init_with_output(jax.random.key(1), x)
        >>> [latent.shape for latent in z]
        [(4, 4, 4, 2), (4, 2, 2, 8)]
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}")
    if coupling not in ("affine", "additive"):
        raise ValueError(f"coupling must be 'affine' or 'additive', got {coupling!r}")
    transform: Transform = Affine(bound) if coupling == "affine" else Additive()
    network = partial(ConvNet, width=width, dtype=dtype)

    def level() -> tuple[Bijector, ...]:
        step = chain(ActNorm(), InvertibleLinear(lu), Coupling(network, transform))
        return (Squeeze(), Repeat(step, num_steps, remat))

    levels = [chain(*level()) for _ in range(num_levels - 1)]
    levels.append(chain(*level(), LearnedPrior(Affine(bound))))
    splits = tuple(Split(_SplitPrior, Affine(bound)) for _ in levels[1:])
    return MultiScale(tuple(levels), splits)


class _SplitPrior(nn.Module):
    """One 3x3 convolution, which starts at 0: the prior of a level's latents, given the rest."""

    features: int

    @nn.compact
    def __call__(self, x, condition=None):
        return Conv(self.features, (3, 3), kernel_init=nn.initializers.zeros, name="conv")(x)
