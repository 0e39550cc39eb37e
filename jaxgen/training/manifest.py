"""The manifest of a checkpoint: name, shape, dtype and fingerprint of every array.

Orbax restores a flipped byte as a wrong weight without an error. The fingerprints here are computed
on the devices that hold the arrays, do not depend on their sharding, and detect any flipped bit.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped, UInt32

import jaxgen
from jaxgen.core import PyTree

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read; the message gives a remedy."""


class Leaf(NamedTuple):
    """The shape and dtype of one array; prints as `float32[3,3,64,128]`."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: Any) -> "Leaf":
        return cls(tuple(array.shape), str(array.dtype))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Manifest(NamedTuple):
    """One checkpoint's description, stored as JSON beside its arrays.

    Attributes:
        step: Number of updates done.
        metrics: Numbers kept with the checkpoint.
        leaves: Name of each array -> its shape and dtype.
        fingerprints: Name of each array -> its fingerprint, 16 hexadecimal digits.
        versions: Versions of jaxgen and JAX that wrote it.
        notes: JSON object that the run keeps beside the arrays; empty in older checkpoints.
    """

    step: int
    metrics: dict[str, float]
    leaves: dict[str, Leaf]
    fingerprints: dict[str, str]
    versions: dict[str, str]
    notes: dict[str, Any] = {}

    @classmethod
    def make(
        cls,
        step: int,
        arrays: Mapping[str, Array],
        metrics: Mapping[str, float],
        notes: Mapping[str, Any] | None = None,
    ) -> "Manifest":
        return cls(
            step,
            {name: float(value) for name, value in metrics.items()},
            {name: Leaf.of(array) for name, array in arrays.items()},
            fingerprints(arrays),
            {"jaxgen": jaxgen.__version__, "jax": jax.__version__},
            dict(notes or {}),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that carries its own checksum."""
        content = {"format": FORMAT, **self._asdict()}
        content["leaves"] = {
            name: [list(leaf.shape), leaf.dtype] for name, leaf in content["leaves"].items()
        }
        return {"manifest": content, "sha256": _digest(content)}

    @classmethod
    def from_json(cls, stored: Any) -> "Manifest":
        """The inverse of `to_json`.

        Raises:
            ValueError: If the object is not a manifest, or not the one that was written.
            CheckpointError: If it is sound, but of another format.
        """
        try:
            content = dict(stored["manifest"])
            if stored["sha256"] != _digest(content):
                raise ValueError("it does not match its checksum")
            if content["format"] != FORMAT:
                version = dict(content.get("versions", {})).get("jaxgen", "another version")
                raise CheckpointError(
                    f"the checkpoint was written by jaxgen {version}: use that version"
                )
            manifest = cls(
                int(content["step"]),
                {name: float(value) for name, value in content["metrics"].items()},
                {
                    name: Leaf(tuple(map(int, shape)), str(dtype))
                    for name, (shape, dtype) in content["leaves"].items()
                },
                {name: str(value) for name, value in content["fingerprints"].items()},
                dict(content["versions"]),
                dict(content.get("notes", {})),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is not a manifest ({error!r})") from error
        if manifest.leaves.keys() != manifest.fingerprints.keys():
            raise ValueError("its arrays and its fingerprints have different names")
        return manifest


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def named_leaves(tree: PyTree, what: str) -> dict[str, Any]:
    """Flattens a tree into `"params/conv/kernel" -> leaf`, in the order of `jax.tree.leaves`.

    Args:
        tree: Tree of arrays or `jax.ShapeDtypeStruct`; NumPy arrays are copied to JAX arrays.
        what: Name of the tree in errors.

    Raises:
        TypeError: If a leaf is not an array, or is a typed PRNG key.
        ValueError: If two leaves have one name, or there is no leaf.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, np.ndarray | np.generic):
            leaf = jnp.array(leaf)
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            raise TypeError(f"{what} must hold arrays only, but {name} is a {type(leaf).__name__}")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{what} holds a PRNG key at {name}: keep its jax.random.key_data")
        if name in named:
            raise ValueError(f"two leaves of {what} are both called {name}")
        named[name] = leaf
    if not named:
        raise ValueError(f"{what} holds no arrays")
    return named


@jax.jit
def fingerprint(array: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    """64 bits that distinguish arrays of one shape and dtype, whatever their sharding.

    With the elements' bits as unsigned words `w[i]`, `i` the flat position, all modulo 2^32,

        f0 = sum_i (2 i + 1) w[i],    f1 = sum_i scramble(w[i] + 0x9E3779B9 i),

    where `scramble` is a bijection of 32-bit words. Odd factors and bijections are injective, so a
    change within one word, hence any flipped bit, always changes both; other changes go undetected
    with probability about 2^-64. Integer sums do not depend on their order, so the value is the
    same on any number of devices.

    Args:
        array: Boolean, integer, real or complex array of 8, 16, 32 or 64-bit parts.

    Returns:
        `(f0, f1)`; zeros for an empty array.
    """
    words = _words(array)
    # A sum of iotas, not a reshape: elementwise code stays where the shards are.
    position = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        along = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += along * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    terms = (words * (2 * position + 1), _scramble(words + position * jnp.uint32(0x9E3779B9)))
    zero = jnp.uint32(0)
    # One reduction of pairs reads the array once; two sums would read it twice.
    sums = lax.reduce(
        terms, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(words.ndim))
    )
    return jnp.stack(sums)


def _words(array: Array) -> Array:
    """The bits of `array` as uint32: a word for each element of up to 32 bits, more for wider."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[array.dtype.itemsize]
    return lax.bitcast_convert_type(array, word).astype(jnp.uint32)


def _scramble(words: Array) -> Array:
    """A bijection of uint32 that spreads every bit: xor-shifts and odd multipliers."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x7FEB352D)
    words = (words ^ (words >> 15)) * jnp.uint32(0x846CA68B)
    return words ^ (words >> 16)


def fingerprints(arrays: Mapping[str, Array]) -> dict[str, str]:
    """`fingerprint` of each array, as 16 hexadecimal digits."""
    # Leaf by leaf: one program for the whole tree takes ten seconds to compile where these, shared
    # by leaves of one shape, take half a second. Each is awaited, because many collectives in
    # flight at once can deadlock the fake devices of a CPU.
    pairs = {name: np.asarray(fingerprint(array)) for name, array in arrays.items()}
    return {name: f"{first:08x}{second:08x}" for name, (first, second) in pairs.items()}
