"""Pictures of families whose latents are maps of codes: which code is where.

They are pictures as in `jaxgen.training.pictures`, which names them and says what each needs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.conditioning.base import condition_of
from jaxgen.core import Family
from jaxgen.training.denoising_pictures import Picture

_STEPS = tuple(1.2207440846057596**-i for i in (1, 2, 3))  # powers of the root of g^4 = g + 1


def code_maps(family: Family) -> Picture:
    """Rows of examples, each above the rows of their reconstructions and of their codes.

    Every code has a colour of its own, the same in all images: equal colours are equal codes, and
    nothing else is said by them. There is at least one triple of rows.

    Args:
        family: Family whose `encode` gives maps of codes [B, h, w], with `decode`.
    """

    encode, decode = family.encode, family.decode
    assert encode is not None
    assert decode is not None

    def draw(variables, batch, key, rows: int, columns: int) -> Array:
        key_encode, key_decode = jax.random.split(key)
        triples = max(1, rows // 3)
        chosen = jax.tree.map(lambda v: v[: triples * columns], dict(batch))
        x, codes = chosen["image"], encode(variables, chosen, key_encode)
        condition = condition_of(family.conditioning, chosen)
        rebuilt = decode(variables, codes, key_decode, condition=condition)
        shape = (*x.shape[:3], 3)
        colours = jax.image.resize(code_colours(codes), shape, "nearest")
        shown = [jnp.broadcast_to(x, shape), jnp.broadcast_to(rebuilt, shape), colours]
        all_rows = jnp.stack([v.reshape(triples, columns, *shape[1:]) for v in shown], axis=1)
        return all_rows.reshape(-1, *shape[1:])

    return draw


def code_colours(codes: Int[Array, "*dims"]) -> Float[Array, "*dims 3"]:
    """A colour of each code, in [-1, 1]: the first k of them are spread over the cube, for any k.

    Code k has the fractional parts of `k / g`, `k / g^2` and `k / g^3`, where `g^4 = g + 1`: the
    additive recurrence whose points keep their distance in three dimensions (Roberts 2018).

    Args:
        codes: Numbers of codes, from 0 on.
    """
    return jnp.stack([2 * ((codes + 0.5) * step % 1) - 1 for step in _STEPS], axis=-1)
