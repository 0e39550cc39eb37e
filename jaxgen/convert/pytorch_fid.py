"""Weights of pytorch-fid's Inception-v3, by its names, and of our `InceptionV3`.

Ours has each batch normalization folded into the convolution before it. So an array that is written
is the folded convolution, beside a normalization that adds its bias: the function is the same, the
single arrays are not those that once were read.
"""

from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxgen.convert.tables import StateDict
from jaxgen.core import Params
from jaxgen.metrics.inception import EPSILON, inception_params


def to_jaxgen(state_dict: StateDict, name: str = "the state dict") -> dict[str, Any]:
    """The parameters of `InceptionV3`.

    Args:
        state_dict: Arrays by pytorch-fid's names.
        name: Name of their file, for errors.

    Raises:
        WeightsError: If an array is missing, unknown, of another shape or not finite; a ValueError.
    """
    return inception_params(state_dict, name)


def from_jaxgen(params: Params) -> dict[str, np.ndarray]:
    """The arrays of pytorch-fid's network; the last layer's bias, which ours has not, is zero.

    Args:
        params: Parameters of `InceptionV3`.

    Raises:
        ValueError: If they are those of another network.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, array in flatten_dict(params, sep=".").items():
        layer, _, kind = name.rpartition(".")
        array = np.asarray(array, np.float32)
        if name == "fc.kernel":
            arrays |= {"fc.weight": array.T.copy(), "fc.bias": np.zeros(array.shape[1], np.float32)}
        elif kind == "kernel" and array.ndim == 4:
            arrays[f"{layer}.conv.weight"] = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
        elif kind == "bias":
            ones, zeros = np.ones_like(array), np.zeros_like(array)
            arrays |= {
                f"{layer}.bn.weight": ones,
                f"{layer}.bn.bias": array.copy(),
                f"{layer}.bn.running_mean": zeros,
                f"{layer}.bn.running_var": np.full_like(array, 1 - EPSILON),
            }
        else:
            raise ValueError(f"params must be those of InceptionV3, and have {name}")
    to_jaxgen(arrays, "params")  # all of them, and no others
    return arrays
