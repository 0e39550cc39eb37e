"""Glow: generative flow with invertible 1x1 convolutions."""

from functools import partial
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike

from jaxgen.checks import check_choice
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
    ShiftScale,
    Split,
    Transform,
)
from jaxgen.models.bijectors.edges import zero_conv
from jaxgen.models.bijectors.linear import InvertibleLinear


def glow(
    num_levels: int = 3,
    num_steps: int = 32,
    width: int = 512,
    *,
    coupling: str = "affine",
    lu: bool = True,
    bound: float | None = 2.0,
    edges: bool = False,
    log_scale_factor: float | None = None,
    remat: bool = False,
    dtype: DTypeLike | None = None,
) -> Bijector:
    """Glow on images (Kingma and Dhariwal 2018, figure 2).

    A level is a squeeze and K steps, each `ActNorm`, an invertible 1x1 convolution and a coupling
    of half of the channels; between levels half of the channels is factored out. The priors of the
    latents are learned; a condition's vector goes into the couplings' networks and into the last
    prior.

    The defaults bound all log-scales. The authors' code is `coupling="sigmoid", lu=False,
    bound=None, edges=True, log_scale_factor=3.0`.

    Args:
        num_levels: Number L of levels; the paper has 3 for CIFAR-10.
        num_steps: Number K of steps a level, 32 in the paper.
        width: Hidden channels of the couplings' networks, 512 in the paper.
        coupling: Kind of the couplings: "affine", "sigmoid" (`ShiftScale` with a sigmoid) or
            "additive".
        lu: Whether the 1x1 convolutions are kept as LU products.
        bound: Greatest size of the log-scales of priors and affine couplings, see `Affine`; None
            for `ShiftScale`, which has no bound.
        edges: Whether 3x3 convolutions and priors are told where the image ends, see `Edges`.
        log_scale_factor: Factor of learned log-scales, of `ActNorm` and of a scale after each
            convolution that starts at 0; None for 1 and for no such scale.
        remat: Whether to recompute within steps for the gradient, to save memory.
        dtype: Type of the networks' layers but the first and the last; None for the data's.

    Returns:
        A bijector from images, whose sides 2^L divides, to a tuple of L latents.

    Raises:
        ValueError: An argument out of its range.

    Examples:
        >>> flow = glow(2, 2, 8)
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
        >>> (z, log_det), variables = flow.init_with_output(jax.random.key(1), x)
        >>> [latent.shape for latent in z]
        [(4, 4, 4, 2), (4, 2, 2, 8)]
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}")
    check_choice("coupling", coupling, ("affine", "sigmoid", "additive"))
    if log_scale_factor is not None and not log_scale_factor > 0:
        raise ValueError(f"log_scale_factor must be positive, got {log_scale_factor}")
    scaled: Transform = ShiftScale() if bound is None else Affine(bound)
    transform = {"affine": scaled, "sigmoid": ShiftScale(sigmoid=True), "additive": Additive()}
    form: dict[str, Any] = {"edges": edges, "log_scale_factor": log_scale_factor}
    network = partial(ConvNet, width=width, dtype=dtype, **form)

    def level() -> tuple[Bijector, ...]:
        norm = ActNorm(log_scale_factor=log_scale_factor or 1.0)
        step = chain(norm, InvertibleLinear(lu), Coupling(network, transform[coupling]))
        return (Squeeze(), Repeat(step, num_steps, remat))

    levels = [chain(*level()) for _ in range(num_levels - 1)]
    levels.append(chain(*level(), LearnedPrior(scaled, **form)))
    splits = tuple(Split(partial(_SplitPrior, **form), scaled) for _ in levels[1:])
    return MultiScale(tuple(levels), splits)


class _SplitPrior(nn.Module):
    """One 3x3 convolution, which starts at 0: the prior of a level's latents, given the rest."""

    features: int
    edges: bool = False
    log_scale_factor: float | None = None

    @nn.compact
    def __call__(self, x, condition=None):
        factor = self.log_scale_factor
        return zero_conv(x, self.features, edges=self.edges, log_scale_factor=factor, name="conv")
