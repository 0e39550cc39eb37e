"""What every metric asks of its features before it computes, and of its result after."""

import warnings
from collections.abc import Mapping

import numpy as np


class FewSamplesWarning(UserWarning):
    """Fewer samples than a number needs to mean what its name says."""


def warn_few(message: str) -> None:
    """Warn, at the caller's caller, that a number rests on too few samples."""
    warnings.warn(message, FewSamplesWarning, stacklevel=3)


def check_features(name: str, features: np.ndarray, at_least: int = 1) -> np.ndarray:
    """The features as a NumPy array [N, D] of float32 or float64.

    Args:
        name: Name of the argument, for errors.
        features: Features [N, D], any real floating-point type.
        at_least: Fewest rows that will do.

    Raises:
        TypeError: features that are not of a real floating-point type.
        ValueError: another shape, fewer rows, or NaN or infinite values; names the first such row.
    """
    array = np.asarray(features)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be real floating-point features, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"{name} must be features [N, D], got shape {array.shape}")
    if len(array) < at_least:
        raise ValueError(f"{name} must have at least {at_least} rows, got {len(array)}")
    array = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32, copy=False)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"{name} must be finite, but {len(bad)} of {len(array)} rows hold NaN or infinity, "
            f"the first of them row {bad[0]}"
        )
    return array


def check_results(results: Mapping[str, float], cause: str) -> None:
    """Checks that computed numbers are finite: NaN compares false, and passes as a good result.

    Args:
        results: Numbers by name.
        cause: What makes them infinite, for the error.

    Raises:
        FloatingPointError: If any is NaN or infinite; names them and the cause.
    """
    lost = [f"{name} is {value}" for name, value in results.items() if not np.isfinite(value)]
    if lost:
        raise FloatingPointError(f"{', '.join(lost)}: {cause}")


def check_pair(
    samples: np.ndarray, reference: np.ndarray, at_least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Both as `check_features` returns them, of one width and one type.

    Args:
        samples: Features [N, D].
        reference: Features [M, D].
        at_least: Fewest rows of each that will do.

    Raises:
        TypeError, ValueError: as `check_features`; ValueError also for widths that differ.
    """
    a = check_features("samples", samples, at_least)
    b = check_features("reference", reference, at_least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            "samples and reference must come from one extractor, but they have "
            f"{a.shape[1]} and {b.shape[1]} features"
        )
    dtype = np.promote_types(a.dtype, b.dtype)
    return a.astype(dtype, copy=False), b.astype(dtype, copy=False)
