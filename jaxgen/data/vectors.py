"""Vectors as data: two standard sets in the plane, and arrays from files."""

from pathlib import Path

import numpy as np

from jaxgen.data.arrays import as_float32, npz_names, read_csv, read_npy, read_npz, standardized
from jaxgen.data.sources import ArraySource
from jaxgen.data.uci import gas, power

SETS = ("two_moons", "checkerboard")
FILES = ("power", "gas", "file")
SIZES = {"train": 20_000, "test": 5_000}
_HELD_OUT = 10  # one row in so many of a file is held out


def two_moons(split: str = "train", noise: float = 0.1) -> ArraySource:
    """Two interleaved half circles of radius 1 with Gaussian noise; a fixed draw.

    The upper one is centred at (0, 0), the lower at (1, 1/2).

    Args:
        split: Name of the split: "train" (20,000 points) or "test" (5,000 others).
        noise: Standard deviation of the noise.

    Returns:
        A source of `vector` f32[2] and `label`: 0 for the upper half circle, 1 for the lower.

    Raises:
        ValueError: Another split, or negative noise.
    """
    if noise < 0:
        raise ValueError(f"noise must be at least 0, got {noise}")
    size, random = _size(split), np.random.default_rng([ord(split[1]), 1])
    label = random.integers(0, 2, size)
    angle = random.uniform(0, np.pi, size)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = np.array([1.0, 0.5]) - upper
    points = np.where(label[:, None] == 0, upper, lower) + noise * random.normal(size=(size, 2))
    return _source(points, "two_moons", split, f"noise {noise}", label)


def checkerboard(split: str = "train") -> ArraySource:
    """Uniform on the 8 dark squares, of side 2, of a 4x4 board on [-4, 4]^2.

    Its entropy, log(32) = 3.466 nats a point, is a lower bound of any model's mean negative
    log-likelihood.

    Args:
        split: Name of the split: "train" (20,000 points) or "test" (5,000 others).

    Returns:
        A source of `vector` f32[2].

    Raises:
        ValueError: Another split.
    """
    size, random = _size(split), np.random.default_rng([ord(split[1]), 2])
    row, pair = random.integers(0, 4, size), random.integers(0, 2, size)
    corner = np.stack([2 * pair + row % 2, row], axis=1)
    points = 2.0 * (corner + random.uniform(size=(size, 2))) - 4.0
    return _source(points, "checkerboard", split, "uniform")


def from_file(path: str | Path, split: str = "train", *, standardize: bool = False) -> ArraySource:
    """The rows of a file: every tenth, in the file's order, is held out.

    Args:
        path: Path of a file, `[N, D]`: `.npy`, or `.csv` as `jaxgen.data.arrays.read_csv` reads it;
            or `.npz` with one array for each split, of the split's name.
        split: Name of the split: "train" or "test", or any array's name in an `.npz` file.
        standardize: Whether the vectors are in deviations from the mean, column by column, of the
            rows of "train".

    Returns:
        A source of `vector` f32[D].

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another kind of file, another split, or anything but real finite numbers
            `[N, D]` that float32 can hold; names the file, the row and what is wanted. To be
            standardized, a column that does not vary.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: name a .npy, .npz or .csv file")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        if split not in (names := npz_names(path)):
            raise ValueError(f"{path} has no split {split!r}, only {sorted(names)}")
        if standardize and "train" not in names:
            raise ValueError(f"{path} has no split 'train' to standardize by, only {sorted(names)}")
        arrays = read_npz(path, [split, "train"] if standardize else [split])
        rows, train = arrays[split], arrays["train"] if standardize else None
        rows = _checked(rows, train, f"{path}, split {split!r}")
    elif suffix in (".npy", ".csv"):
        _size(split)
        whole = read_npy(path) if suffix == ".npy" else read_csv(path)
        held_out = np.arange(len(whole)) % _HELD_OUT == _HELD_OUT - 1
        whole = _checked(whole, whole[~held_out] if standardize else None, str(path))
        rows = whole[held_out if split == "test" else ~held_out]
        if not len(rows):
            raise ValueError(
                f"{path} must have at least {_HELD_OUT} rows, of which one is held out, got "
                f"{len(whole)}"
            )
    else:
        raise ValueError(f"the file must end in .npy, .npz or .csv, got {path}")
    how = "rows of a file" + (" in deviations from the mean" if standardize else "")
    return _source(rows, path.name, split, how)


def _checked(rows: np.ndarray, train: np.ndarray | None, what: str) -> np.ndarray:
    """The rows as float32, standardized by others if wanted, if they are what is wanted."""
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{what} must hold numbers [N, D], got {list(rows.shape)}")
    if train is None or rows.dtype.kind not in "biuf" or train.dtype.kind not in "biuf":
        return as_float32(rows, what)
    train = train.astype(np.float64)
    if train.ndim != 2 or train.shape[1:] != rows.shape[1:] or not len(train):
        raise ValueError(f"{what} cannot be standardized by train, {list(train.shape)}")
    return standardized(rows, train.mean(axis=0), train.std(axis=0), what)


def load_vectors(
    name: str,
    split: str = "train",
    path: str | Path | None = None,
    *,
    standardize: bool = False,
) -> ArraySource:
    """A source of vectors by name, as experiments load them.

    Args:
        name: Name of the set: "two_moons", "checkerboard", "file", or one of `jaxgen.data.uci`,
            "power" and "gas".
        split: Name of the split: "train" or "test".
        path: Path of the file of "file", "power" and "gas"; otherwise unused.
        standardize: Whether the vectors of a file are standardized, see `from_file`.

    Raises:
        ValueError: An unknown name, a missing path, or an error of the source.
        FileNotFoundError: No such file.
    """
    if name not in (*SETS, *FILES):
        known = ", ".join((*SETS, *FILES[:-1]))
        raise ValueError(f"unknown data set {name!r}: known are {known} and {FILES[-1]}")
    if standardize and name != "file":
        raise ValueError(f"standardize is for the data set 'file', got {name!r}")
    if name in SETS:
        return two_moons(split) if name == "two_moons" else checkerboard(split)
    if path is None:
        raise ValueError(f"the data set {name!r} needs --data.dir, the path of the file")
    if name == "file":
        return from_file(path, split, standardize=standardize)
    return power(path, split) if name == "power" else gas(path, split)


def _size(split: str) -> int:
    if split not in SIZES:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return SIZES[split]


def _source(
    points: np.ndarray, name: str, split: str, how: str, label: np.ndarray | None = None
) -> ArraySource:
    arrays = {"vector": points.astype(np.float32)}
    if label is not None:
        arrays["label"] = label.astype(np.int32)
    protocol = f"{name} ({how}), split {split} ({len(points)} vectors)"
    return ArraySource(arrays, name=name, split=split, protocol=protocol)
