"""Tensors from a PyTorch file, `.pth`, read without PyTorch and without running what is in it.

Both containers are read: the zip archive of PyTorch 1.6 and later, and the file of pickles before.
Of the pickles only what describes tensors in dictionaries is allowed, and arrays are made of the
descriptions afterwards; anything else is refused.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
            if zipfile.is_zipfile(file):
                tensors = _read_zip(path)
            else:
                file.seek(0)
                tensors = _read_legacy(file, path.stat().st_size)
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
        WeightsError: as `check_names`; layers that are not finite.
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
        folded = fold_batch_norm(weights, conv, norm, epsilon)
        if not all(np.isfinite(array).all() for array in folded.values()):
            raise WeightsError(f"{path}: {conv} and {norm} together are not finite")
        block[place[-1]] = folded
    for layer, name in dense.items():
        params[layer] = {"kernel": weights[f"{name}.weight"].T.copy()}
        if "bias" in expected[layer]:
            params[layer]["bias"] = weights[f"{name}.bias"].copy()
    return params


def _at(tree: Mapping[str, Any], place: Iterable[str]) -> Any:
    for name in place:
        tree = tree[name]
    return tree


class _Kind(NamedTuple):
    """A PyTorch storage class, by name only."""

    name: str


class _Storage(NamedTuple):
    """What a pickle says of a storage."""

    key: str
    kind: str
    size: int


class _Tensor(NamedTuple):
    """What a pickle says of a tensor, whatever that is; `_view` makes an array of it."""

    storage: Any
    offset: Any
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


def _read_zip(path: Path) -> Any:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        if large := [m.filename for m in archive.infolist() if m.file_size > size]:
            raise ValueError(f"{large[0]} in it would be larger than the file itself")
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"the archive has {len(pickles)} files data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its byte order is not little-endian")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        tensors = unpickler.load()

        def content(storage: _Storage) -> bytes:
            return archive.read(f"{root}data/{storage.key}")

        storages = unpickler.storages.values()
        return _with_arrays(tensors, {s: _array(s, content(s)) for s in storages})


def _read_legacy(file: io.BufferedIOBase, size: int) -> Any:
    """Four pickles (magic number, version, machine, object), a list of keys, then the storages."""

    def unpickle() -> Any:
        return _Unpickler(file).load()

    if unpickle() != _MAGIC:
        raise ValueError("it does not begin as one")
    unpickle()  # the container's version: there is only one
    if not unpickle()["little_endian"]:
        raise ValueError("its byte order is not little-endian")
    unpickler = _Unpickler(file)
    tensors = unpickler.load()
    awaited, arrays = unpickler.storages, {}
    for key in unpickle():
        (count,) = struct.unpack("<q", file.read(8))
        storage = awaited.pop(key)
        if count != storage.size:
            raise ValueError(f"storage {key} is cut off: {count} of {storage.size} elements")
        num_bytes = count * np.dtype(_DTYPES[storage.kind]).itemsize
        # Never asked for more than the file has, whatever it says.
        arrays[storage] = _array(storage, file.read(min(num_bytes, size)))
    if awaited:
        raise ValueError(f"storage {next(iter(awaited))} is missing")
    return _with_arrays(tensors, arrays)


def read_storage(content: bytes) -> np.ndarray:
    """The elements of one storage, which PyTorch pickled by itself, as it does within a module.

    Args:
        content: Bytes that `torch.storage._load_from_bytes` would be given.

    Raises:
        Exception: Any of `jaxgen.pickles.ERRORS` or struct.error, for what is broken or no storage.
    """
    array = _read_legacy(io.BytesIO(content), len(content))
    if not isinstance(array, np.ndarray):
        raise ValueError(f"it holds no storage where one should be, but {type(array).__name__}")
    return array


def _array(storage: _Storage, content: bytes) -> np.ndarray:
    """A storage's elements, of which there must be as many as were said."""
    dtype = np.dtype(_DTYPES[storage.kind])
    if len(content) != storage.size * dtype.itemsize:
        raise ValueError(
            f"storage {storage.key} is cut off: {len(content)} bytes of "
            f"{storage.size * dtype.itemsize}"
        )
    return np.frombuffer(content, dtype)


def _with_arrays(tensors: Any, arrays: Mapping[_Storage, np.ndarray]) -> Any:
    """The object with arrays in the place of what a pickle said of tensors."""
    if isinstance(tensors, _Storage):
        return arrays[tensors]
    if not isinstance(tensors, Mapping):
        return tensors
    return {
        name: _view(value, arrays) if isinstance(value, _Tensor) else value
        for name, value in tensors.items()
    }


def _view(tensor: _Tensor, arrays: Mapping[_Storage, np.ndarray]) -> np.ndarray:
    """A tensor: a strided view of a storage, checked to lie within it."""
    storage, offset, shape, steps = tensor
    if type(storage) is not _Storage:
        raise ValueError(f"a tensor is said to be of {type(storage).__name__}, not of a storage")
    return strided(arrays[storage], offset, shape, steps)


def strided(array: np.ndarray, offset: Any, shape: Any, steps: Any) -> np.ndarray:
    """A tensor as a view of its storage, checked to lie within it.

    Args:
        array: Elements of the storage.
        offset: Index of the tensor's first element.
        shape: Shape of the tensor.
        steps: Strides of the tensor, in elements.

    Raises:
        ValueError: If the numbers are no integers, or the view would leave the storage.
    """
    numbers = (offset, *shape, *steps)
    if not all(type(n) is int for n in numbers):
        raise ValueError(f"a tensor has offset, shape and strides {numbers}, wanted are integers")
    last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    if min(numbers) < 0 or (0 not in shape and last >= array.size):
        raise ValueError(f"a tensor of shape {shape} does not fit into its storage")
    strides = tuple(s * array.itemsize for s in steps)
    return np.lib.stride_tricks.as_strided(array[offset:], shape, strides, writeable=False)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries and descriptions of tensors, and refuses to import anything."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}  # by key

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

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, count, *view = pid
        if (
            tag != "storage"
            or not isinstance(kind, _Kind)
            or any(part is not None for part in view)
        ):
            raise pickle.UnpicklingError(f"it refers to an unknown object {tag!r}")
        storage = _Storage(str(key), kind.name, int(count))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is described in two ways")
        return storage
