"""Attention between positions, in the form that suits the backend."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

_LARGEST_FUSED_HEAD = 128
_HIDDEN = -1e30


@partial(jax.jit, static_argnames="causal")  # traced once for a shape, however often it recurs
def dot_product_attention(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    value: Float[Array, "batch keys heads width"],
    mask: Bool[Array, "batch keys"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "batch queries heads width"]:
    r"""$$\mathrm{softmax}(q k^\top / \sqrt{d})\,v$$ of every head, d its width.

    Vaswani et al. (2017), equation 1. Products accumulate in float32, the softmax is float32. On
    accelerators it is `jax.nn.dot_product_attention`: on NVIDIA cards cuDNN's fused form where the
    inputs are of 16 bits, a head is at most 128 wide and both lengths are even. On a CPU it is two
    batched products, which take two thirds of the time of that, and for one query two sums.

    Args:
        query: Queries, in the type of the computation.
        key: Keys, of the same type.
        value: Values, of the same type.
        mask: True where a key counts; None where all do. Where none does, all weigh the same.
        causal: Whether query i sees the keys up to the i-th alone, and not the later ones.

    Returns:
        For each query the values, weighted.

    Examples:
        >>> x = jnp.ones((2, 16, 4, 8))
        >>> dot_product_attention(x, x, x).shape
        (2, 16, 4, 8)
    """
    masked = () if mask is None else (mask,)
    ours, library = (partial(form, causal=causal) for form in (_two_products, _library))
    return lax.platform_dependent(query, key, value, *masked, cpu=ours, default=library)


def _library(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False
) -> Array:
    fused = mask is None and _is_fused_by_cudnn(query, key)
    implementation: Literal["cudnn"] | None = "cudnn" if fused else None
    where = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(
        query, key, value, mask=where, is_causal=causal, implementation=implementation
    )


def _is_fused_by_cudnn(query: Array, key: Array) -> bool:
    """Whether this process's card computes such an attention in one kernel."""
    if jax.default_backend() != "gpu" or query.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", "0"))  # "9.0"; AMD: "gfx90a"
    major = capability.split(".")[0]
    if not major.isdigit() or int(major) < 8:
        return False
    width = query.shape[-1]
    even = query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0  # its gradient refuses odd lengths
    return even and width <= _LARGEST_FUSED_HEAD and width % 8 == 0


def _two_products(
    query: Array, key: Array, value: Array, mask: Array | None = None, *, causal: bool = False
) -> Array:
    batch, _, heads, width = query.shape

    def fold(x: Array) -> Array:  # [batch * heads, positions, width]: no other axes
        return x.swapaxes(1, 2).reshape(batch * heads, -1, width)

    few = key.shape[1] < width  # then fewer logits are to be scaled than numbers of the queries
    q, k, v = fold(query if few else query * width**-0.5), fold(key), fold(value)
    alone = q.shape[1] == 1  # of one query XLA's products take seven times as long as these sums
    if alone:
        logits = jnp.sum(q * k, axis=-1, dtype=jnp.float32)[:, None]
    else:
        logits = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=jnp.float32)
    logits = logits * width**-0.5 if few else logits
    if mask is not None:  # a finite number: where no key counts, the softmax is not NaN
        logits = jnp.where(jnp.repeat(mask, heads, axis=0)[:, None], logits, _HIDDEN)
    if causal:
        seen = jnp.tri(q.shape[1], k.shape[1], dtype=bool)
        logits = jnp.where(seen[None], logits, _HIDDEN)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    if alone:
        y = jnp.sum(weights[:, 0, :, None] * v, axis=1, dtype=jnp.float32).astype(v.dtype)
        return y.reshape(batch, 1, heads, width)
    y = jnp.einsum("bqk,bkd->bqd", weights, v)
    return y.reshape(batch, heads, -1, width).swapaxes(1, 2)
