"""The arrays of NVIDIA's pickles (EDM, StyleGAN2 and later), read without running what is in them.

Such a pickle carries the source code of its networks, which its own library runs. Here nothing is
run: a network becomes a `Module`, a note of its class's name, the arguments that it was made with
and its arrays, and whatever else a pickle refers to is refused.

    ema = read("edm-cifar10-32x32-uncond-vp.pkl")["ema"]
    ema.class_name, ema.arrays()["model.map_layer0.weight"].shape
"""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import pickles
from jaxgen.metrics.torch_weights import read_storage, strided

_ERRORS = (*pickles.ERRORS, struct.error, RecursionError)


class Module:
    """What a pickle says of a network, or of another object of a class of its own.

    Attributes:
        class_name: Name of its class, such as "EDMPrecond".
        state: Its attributes; the arguments it was made with are `_init_kwargs`.
    """

    class_name = "Module"

    def __init__(self, *_: Any):
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state)

    @property
    def options(self) -> dict[str, Any]:
        """The named arguments that it was made with."""
        return dict(self.state.get("_init_kwargs") or {})

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters and buffers by name, as PyTorch's `state_dict` names them.

        Raises:
            ValueError: If something else stands where an array should.
        """
        arrays: dict[str, np.ndarray] = {}
        for kind in ("_parameters", "_buffers"):
            for name, array in dict(self.state.get(kind) or {}).items():
                if isinstance(array, np.ndarray):
                    arrays[str(name)] = array
                elif array is not None:
                    raise ValueError(f"{name} of {self.class_name} is no array")
        for name, part in dict(self.state.get("_modules") or {}).items():
            if isinstance(part, Module):
                arrays |= {f"{name}.{inner}": array for inner, array in part.arrays().items()}
            elif part is not None:
                raise ValueError(f"{name} of {self.class_name} is no network")
        return arrays


def read(path: str | Path) -> dict[str, Any]:
    """The content of a pickle: networks as `Module`, under "ema" (EDM), or "G_ema" and "D".

    Args:
        path: Path of the file, .pkl.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken, refers to what no network needs, or holds no dictionary; names
            the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
            if not isinstance(content, Mapping):
                raise ValueError(f"it holds no dictionary, but {type(content).__name__}")
            return dict(content)
    except _ERRORS as error:
        raise ValueError(f"{path} is broken, or no pickle of networks: {error}") from error


def _persistent(meta: Any) -> Module:
    """What their library makes an object of, by running the source code in `meta`."""
    module = Module()
    module.class_name = str(meta["class_name"])
    module.__setstate__(meta["state"])
    return module


def _tensor(storage: Any, offset: Any, shape: Any, steps: Any, *_: Any) -> np.ndarray:
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise ValueError("a tensor is said to be of something else than a storage")
    return strided(storage, offset, tuple(shape), tuple(steps))


def _parameter(data: Any, *_: Any) -> Any:
    return data


_BUILT_IN = {("collections", "OrderedDict"): OrderedDict, ("builtins", "set"): set}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): read_storage,
}


class _Unpickler(pickle.Unpickler):
    """Knows the containers of networks, and notes of the rest that they have."""

    def find_class(self, module: str, name: str) -> Any:
        # Each time a new one: a pickle may set attributes of what it is given.
        if (module, name) in _FUNCTIONS:
            return partial(_FUNCTIONS[module, name])
        if (module, name) in _BUILT_IN:
            return _BUILT_IN[module, name]
        if (module, name) == ("dnnlib.util", "EasyDict"):
            return type(name, (dict,), {})
        if module.startswith("torch.nn.modules."):
            return type(name, (Module,), {"class_name": name})
        numpy = ("_reconstruct", "ndarray", "dtype", "scalar")  # of options: the root of a half
        if module.split(".")[0] == "numpy" and name in numpy:
            return type(name, (pickles.Recorded,), {})
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no network needs")
