"""The diffusion transformer in recipes: its flags, and the network of them."""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxgen.models.dit import DiT


@dataclass(frozen=True)
class DiTConfig:
    """The transformer, with `--model.network dit`; the defaults are DiT-S/2."""

    width: int = 384
    """Width of the sequence (S 384, B 768, L 1024, XL 1152)."""
    depth: int = 12
    """Number of blocks (S and B 12, L 24, XL 28)."""
    num_heads: int = 6
    """Number of heads of the attention (S 6, B 12, L and XL 16)."""
    patch_size: int = 2
    """Height and width of a patch."""
    in_context: bool = False
    """Let the tokens of a text join the sequence of patches, instead of being attended to."""


def make_dit(config: DiTConfig, out_channels: int, precision: str, *, remat: bool) -> DiT:
    """The transformer of the flags.

    Args:
        config: Flags.
        out_channels: Channels of the output.
        precision: Type of the arithmetic.
        remat: Whether to compute activations again in the backward pass.
    """
    return DiT(
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        out_channels=out_channels,
        in_context=config.in_context,
        dtype=jnp.dtype(precision),
        remat=remat,
    )
