"""A pseudo-random permutation of range(n) that is computed at any index, without a table.

A step of a shuffled epoch needs a batch of entries of a permutation. Sorting or storing all n of
them at each epoch would cost O(n) inside the compiled step; this costs O(batch).
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

MAX_SIZE = 2**30
_ROUNDS = 6
_GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio


def permute(index: Any, key: Sequence[Any], n: int, xp: ModuleType = np) -> Any:
    """The images of `index` under a keyed permutation of range(n).

    Each of six rounds adds a key to x modulo n; then, with a = floor(sqrt(n)) and b = floor(n / a),
    one generalized Feistel round maps those x = b l + r that are below a b:

        l <- (l + F(r)) mod a,    r <- (r + G(l)) mod b.

    Both are bijections of range(n), for any n, so their composition is one, exactly. The Feistel
    round is that of Black and Rogaway ("Ciphers with arbitrary finite domains", 2002, section 5);
    the additions between rounds reach the fewer than sqrt(n) elements that it leaves out, so that
    there is no cycle walking, whose loop would depend on the data. F and G are keyed 32-bit
    integer hashes. This is for shuffling, not for secrecy.

    Args:
        index: Integers in [0, n), of any shape.
        key: Words of 32 bits that choose the permutation (a seed and an epoch, say): Python
            integers in [0, 2**32) or uint32 arrays that broadcast against `index`.
        n: Size of the permuted set, in [1, 2**30].
        xp: `numpy` or `jax.numpy`; both give identical bits. Under JAX `index` and `key` may be
            traced.

    Returns:
        uint32, of the shape of `index` and `key` broadcast: the permuted indices.

    Raises:
        ValueError: If n is outside [1, 2**30].

    Examples:
        >>> sorted(permute(np.arange(7), (0, 1), 7).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """
    if not 1 <= n <= MAX_SIZE:
        raise ValueError(f"n must be between 1 and 2**30, got {n}")
    rows = min(n, max(2, math.isqrt(n)))
    columns = n // rows
    size, a, b = np.uint32(n), np.uint32(rows), np.uint32(columns)
    with np.errstate(over="ignore"):  # NumPy scalars warn where arrays wrap
        x = xp.asarray(index).astype(xp.uint32)
        f = _absorb(key, 1, xp)  # two hashes of the key, so that 64 bits of it count
        g = _absorb(key, 2, xp)
        for _ in range(_ROUNDS):
            f, g = _mix(f + np.uint32(_GOLDEN)), _mix(g + np.uint32(_GOLDEN))
            x = (x + (f ^ g) % size) % size
            left, right = x // b, x % b
            left = (left + _mix(right ^ f) % a) % a
            right = (right + _mix(left ^ g) % b) % b
            x = xp.where(x < a * b, left * b + right, x)
    return x


def _absorb(words: Sequence[Any], start: int, xp: ModuleType) -> Any:
    """A 32-bit hash of the words."""
    state = xp.asarray(start, xp.uint32)
    for word in words:
        state = _mix((state ^ xp.asarray(word, xp.uint32)) + np.uint32(_GOLDEN))
    return state


def _mix(x: Any) -> Any:
    """A bijection of 32-bit words in which each input bit flips about half of the output's.

    The finalizer of MurmurHash3 (Appleby 2011, public domain).
    """
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
