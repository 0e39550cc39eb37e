"""The fingerprint sees every flipped bit, and nothing but the bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen.training.manifest import (
    CheckpointError,
    Leaf,
    Manifest,
    _digest,
    fingerprint,
    fingerprints,
    named_leaves,
)

DTYPES = ["bool", "uint8", "int8", "int16", "float16", "bfloat16", "int32", "float32", "complex64"]
WIDE = ["float64", "int64", "uint64", "complex128"]


def random_array(dtype, shape, seed=0):
    """Any bit pattern of the dtype, NaNs and denormals included."""
    dtype = jnp.dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    data = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def reference(array):
    """The equation of the docstring, in NumPy, from the bytes in memory."""
    array = np.ascontiguousarray(array)
    size = min(array.dtype.itemsize, 4)
    if array.dtype.kind == "c":
        size = min(array.dtype.itemsize // 2, 4)
    words = np.frombuffer(array.tobytes(), f"<u{size}").astype(np.uint64)
    position = np.arange(words.size, dtype=np.uint64)
    first = np.sum(words * (2 * position + 1), dtype=np.uint64) % 2**32
    x = (words + position * 0x9E3779B9) % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> np.uint64(shift))) * factor) % 2**32
    x ^= x >> np.uint64(16)
    return [int(first), int(np.sum(x) % 2**32)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4, 5), (0, 3)])
def test_fingerprint_is_the_documented_sum(dtype, shape):
    array = random_array(dtype, shape)
    assert np.asarray(fingerprint(jnp.asarray(array))).tolist() == reference(array)


@pytest.mark.parametrize("dtype", WIDE)
def test_fingerprint_of_64_bit_types(dtype):
    with jax.enable_x64(True):
        array = random_array(dtype, (3, 5))
        assert np.asarray(fingerprint(jnp.asarray(array))).tolist() == reference(array)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "int32", "float32", "complex64"])
def test_any_flipped_bit_changes_both_words(dtype):
    array = random_array(dtype, (11, 13))
    before = np.asarray(fingerprint(jnp.asarray(array)))
    rng = np.random.default_rng(1)
    for _ in range(100):
        flipped = array.copy()
        flipped.view(np.uint8).reshape(-1)[rng.integers(array.nbytes)] ^= 1 << rng.integers(8)
        assert (np.asarray(fingerprint(jnp.asarray(flipped))) != before).all()


def test_the_order_of_elements_and_zeros_count():
    x = random_array("float32", (64,))
    swapped = x.copy()
    swapped[[3, 40]] = x[[40, 3]]
    words = {tuple(np.asarray(fingerprint(jnp.asarray(y))).tolist()) for y in (x, swapped)}
    words |= {tuple(np.asarray(fingerprint(jnp.zeros(n))).tolist()) for n in (1, 2, 3)}
    assert len(words) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
@pytest.mark.parametrize(
    "spec", [(), ("a",), (None, "b"), ("b", "a"), (("a", "b"),), (None, ("b", "a"))]
)
def test_fingerprint_does_not_depend_on_the_sharding(dtype, spec):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    array = random_array(dtype, (16, 24))
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert np.asarray(fingerprint(sharded)).tolist() == reference(array)


def test_fingerprints_are_written_as_hexadecimal():
    array = jnp.arange(5.0)
    first, second = np.asarray(fingerprint(array)).tolist()
    assert fingerprints({"x": array}) == {"x": f"{first:08x}{second:08x}"}


def test_leaves_are_named_by_their_path():
    tree = {"b": [jnp.zeros(1), {"c": np.float32(2)}], "a": Leaf(jnp.ones(2), jnp.ones(3))}
    named = named_leaves(tree, "state")
    assert list(named) == ["a/shape", "a/dtype", "b/0", "b/1/c"]
    assert all(isinstance(leaf, jax.Array) for leaf in named.values())


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": 1.0}, TypeError, "state must hold arrays only, but a is a float"),
        ({"a": {"b": "x"}}, TypeError, "but a/b is a str"),
        ({"k": jax.random.key(0)}, TypeError, "PRNG key at k"),
        ({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, ValueError, "both called a/b"),
        ({"a": {}}, ValueError, "state holds no arrays"),
    ],
)
def test_trees_that_cannot_be_kept(tree, error, message):
    with pytest.raises(error, match=message):
        named_leaves(tree, "state")


def example():
    arrays = {"w": jnp.ones((2, 3)), "empty": jnp.zeros((0, 2), jnp.bfloat16)}
    return Manifest.make(7, arrays, {"loss": 0.5, "worse": float("nan")})


def test_manifest_survives_json():
    manifest = example()
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert again._replace(metrics={}) == manifest._replace(metrics={})
    assert again.metrics["loss"] == 0.5
    assert str(again.leaves["empty"]) == "bfloat16[0,2]"


def test_a_changed_manifest_is_refused():
    text = json.dumps(example().to_json())
    for index in range(len(text)):
        changed = text[:index] + chr(ord(text[index]) ^ 1) + text[index + 1 :]
        with pytest.raises(ValueError):  # noqa: PT011 (JSONDecodeError, or ours)
            Manifest.from_json(json.loads(changed))
    for other in (None, [], {}, {"manifest": 3, "sha256": ""}):
        with pytest.raises(ValueError, match="not a manifest"):
            Manifest.from_json(other)


def test_a_later_format_is_named_as_such():
    content = {**example().to_json()["manifest"], "format": 99}
    content["versions"]["jaxgen"] = "9.9"
    with pytest.raises(CheckpointError, match=r"jaxgen 9\.9"):
        Manifest.from_json({"manifest": content, "sha256": _digest(content)})


@pytest.mark.parametrize("key", ["format", "step", "metrics", "leaves", "fingerprints", "versions"])
def test_a_signed_manifest_that_lacks_something_is_none(key):
    content = example().to_json()["manifest"]
    del content[key]
    with pytest.raises(ValueError, match=f"it is not a manifest .*{key}"):
        Manifest.from_json({"manifest": content, "sha256": _digest(content)})


@pytest.mark.parametrize("key", ["leaves", "fingerprints"])
def test_every_array_has_a_fingerprint(key):
    content = example().to_json()["manifest"]
    del content[key]["w"]
    with pytest.raises(ValueError, match="arrays and its fingerprints have different names"):
        Manifest.from_json({"manifest": content, "sha256": _digest(content)})
