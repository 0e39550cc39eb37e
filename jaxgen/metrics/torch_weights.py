"""Tensors from a PyTorch file, `.pth`, read without PyTorch and without running what is in it.

Both containers are read: the zip archive of PyTorch 1.6 and later, and the file of pickles before.
Of the pickles only what rebuilds tensors in dictionaries is allowed; anything else is refused.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class WeightsError(ValueError):
    """A file that is no, or not the expected, set of weights."""


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a saved `state_dict`.

    Args:
        path: A file made by `torch.save(module.state_dict(), path)`.

    Returns:
        Name -> array, in the file's order.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: a file that is truncated, broken, no PyTorch file, or holds anything but
            tensors by name; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    try:
        with path.open("rb") as file:
            tensors = _read_zip(path) if zipfile.is_zipfile(file) else _read_legacy(path)
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        MemoryError,
        OSError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise WeightsError(
            f"{path} is truncated, broken, or no PyTorch file of weights: {error}"
        ) from error
    if not isinstance(tensors, Mapping) or not tensors:
        raise WeightsError(f"{path} holds no dictionary of tensors, but {type(tensors).__name__}")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise WeightsError(f"{path} holds under {name!r} no tensor, but {type(value).__name__}")
    return dict(tensors)


def check_names(
    weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], path: str | Path
) -> None:
    """Raise unless `weights` holds exactly the named tensors of these shapes.

    Args:
        weights: Tensors by name.
        shapes: Name -> shape of what is expected.
        path: Name of the file, for errors.

    Raises:
        WeightsError: says what is missing, unknown or of another shape, and names the file.
    """
    missing = [name for name in shapes if name not in weights]
    unknown = [name for name in weights if name not in shapes]
    if missing or unknown:
        raise WeightsError(
            f"{path} holds the weights of another network: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}...), {len(unknown)} unknown ({', '.join(unknown[:3])}...)"
        )
    for name, shape in shapes.items():
        if weights[name].shape != tuple(shape):
            raise WeightsError(
                f"{path} holds the weights of another network: {name} has shape "
                f"{weights[name].shape}, not {tuple(shape)}"
            )


def fold_batch_norm(
    weights: Mapping[str, np.ndarray], conv: str, norm: str, epsilon: float
) -> dict[str, np.ndarray]:
    """A convolution and the batch normalization after it, as one convolution with a bias.

    Args:
        weights: Weights of the network, by PyTorch's names.
        conv: Name of the convolution; it has no bias.
        norm: Name of the normalization.
        epsilon: Number added to its variance.

    Returns:
        `kernel` f32[*space, in, out] and `bias` f32[out], folded in float64.
    """
    scale, shift, mean, variance = (
        weights[f"{norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(variance + epsilon)
    kernel = weights[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale
    return {
        "kernel": np.ascontiguousarray(kernel, np.float32),
        "bias": (shift - mean * scale).astype(np.float32),
    }


def folded_params(
    weights: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
    layers: Mapping[tuple[str, ...], tuple[str, str]],
    dense: Mapping[str, str],
    path: str | Path,
    *,
    epsilon: float,
) -> dict[str, Any]:
    """The parameters of a Flax network whose batch normalizations are folded, from PyTorch's.

    Args:
        weights: Weights of the PyTorch network: convolutions without bias, normalizations, dense
            layers.
        expected: Parameters of the Flax network, or their shapes.
        layers: Place among them -> (convolution, batch normalization).
        dense: Place of a dense layer, without a bias or with one -> its name. In PyTorch it has
            one.
        path: Name of the file, for errors.
        epsilon: Number added to the variances of the normalizations.

    Raises:
        WeightsError: as `check_names`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for place, (conv, norm) in layers.items():
        *space, channels, features = _at(expected, place)["kernel"].shape
        shapes[f"{conv}.weight"] = (features, channels, *space)
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{statistic}"] = (features,)
    for layer, name in dense.items():
        channels, features = expected[layer]["kernel"].shape
        shapes |= {f"{name}.weight": (features, channels), f"{name}.bias": (features,)}
    counted = ".num_batches_tracked"  # not every file has them, and none needs them
    check_names({k: v for k, v in weights.items() if not k.endswith(counted)}, shapes, path)
    params: dict[str, Any] = {}
    for place, (conv, norm) in layers.items():
        block = params
        for name in place[:-1]:
            block = block.setdefault(name, {})
        block[place[-1]] = fold_batch_norm(weights, conv, norm, epsilon)
    for layer, name in dense.items():
        params[layer] = {"kernel": weights[f"{name}.weight"].T.copy()}
        if "bias" in expected[layer]:
            params[layer]["bias"] = weights[f"{name}.bias"].copy()
    return params


def _at(tree: Mapping[str, Any], place: Iterable[str]) -> Any:
    for name in place:
        tree = tree[name]
    return tree


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"the archive has {len(pickles)} files data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its byte order is not little-endian")

        def storage(kind: type, key: str, count: int) -> np.ndarray:
            array: np.ndarray = np.frombuffer(archive.read(f"{root}data/{key}"), kind)
            if len(array) != count:
                raise ValueError(f"storage {key} has {len(array)} elements, not {count}")
            return array

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_legacy(path: Path) -> Any:
    """Four pickles (magic number, version, machine, object), a list of keys, then the storages."""
    storages: dict[str, np.ndarray] = {}

    def storage(kind: type, key: str, count: int) -> np.ndarray:
        return storages.setdefault(key, np.empty(count, kind))

    def unpickle(file: Any) -> Any:
        return _Unpickler(file, storage).load()

    with path.open("rb") as file:
        if unpickle(file) != _MAGIC:
            raise ValueError("it does not begin as one")
        unpickle(file)  # the container's version: there is only one
        if not unpickle(file)["little_endian"]:
            raise ValueError("its byte order is not little-endian")
        tensors = unpickle(file)
        for key in unpickle(file):
            (count,) = struct.unpack("<q", file.read(8))
            array = storages[key]
            if count != array.size or file.readinto(array.view(np.uint8).data) != array.nbytes:
                raise ValueError(f"storage {key} is cut off")
    return tensors


class _Kind:
    """A PyTorch storage class, by name only."""

    def __init__(self, name: str):
        self.dtype = _DTYPES[name]


def _rebuild(
    storage: np.ndarray, offset: int, size: Iterable[int], stride: Iterable[int], *_: Any
) -> np.ndarray:
    """A tensor: a strided view of a storage, checked to lie within it."""
    shape, steps = tuple(size), tuple(stride)
    last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    negative = min((offset, *shape, *steps)) < 0
    if negative or (0 not in shape and last >= storage.size):
        raise ValueError(f"a tensor of shape {shape} does not fit into its storage")
    strides = tuple(s * storage.itemsize for s in steps)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries and tensors, and refuses to import anything."""

    def __init__(self, file: Any, storage: Callable[[type, str, int], np.ndarray]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _DTYPES:
            return _Kind(name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> np.ndarray:
        tag, kind, key, _, count = pid[:5]
        if tag != "storage" or not isinstance(kind, _Kind):
            raise pickle.UnpicklingError(f"it refers to an unknown object {tag!r}")
        return self._storage(kind.dtype, str(key), int(count))
