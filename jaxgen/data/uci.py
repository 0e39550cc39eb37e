"""The tables POWER and GAS of density estimation, preprocessed as in Papamakarios et al. (2017).

Both are of the UCI repository, and `https://zenodo.org/records/1161203` has them as the authors
used them. Every paper since compares on these splits: train, the last tenth of what is left after
the test rows as `val`, and the last tenth of all as `test`.
"""

from pathlib import Path

import numpy as np

from jaxgen.data.arrays import read_csv, read_npy, standardized
from jaxgen.data.sources import ArraySource

SPLITS = ("train", "val", "test")
POWER_COLUMNS = 8
GAS_COLUMNS = 19
_CORRELATED = 0.98


def power(path: str | Path, split: str = "train") -> ArraySource:
    """POWER: the electric power of a household, minute by minute.

    The rows are shuffled by a fixed seed. Reactive power and intensity are left out; what the
    meters round away is put back by uniform noise, 0.001 kilowatts wide for the active power, 0.01
    volts for the voltage, 1 watt-hour for the three meters. All is in deviations from the mean,
    of the rows that are not test rows.

    Args:
        path: Path of the authors' `power/data.npy`, or of a `.csv` file with its eight columns:
            active power, reactive power, voltage, intensity, three meters, time of day.
        split: Name of the split, "train", "val" or "test".

    Returns:
        A source of `vector` f32[6].

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another split, or a file of anything but finite numbers [N, 8].
    """
    rows = _table(path, split, POWER_COLUMNS)
    random = np.random.RandomState(42)  # as published: the splits are these draws
    rows = np.delete(rows[random.permutation(len(rows))], (1, 3), axis=1)
    rows[:, 1] += 0.01 * random.rand(len(rows))
    rows[:, 0] += 0.001 * random.rand(len(rows))
    rows[:, 2:5] += random.rand(len(rows), 3)
    train, val, test = _in_three(rows)
    known = np.concatenate([train, val])
    return _source("power", path, split, (train, val, test), known.mean(axis=0), known.std(axis=0))


def gas(path: str | Path, split: str = "train") -> ArraySource:
    """GAS: sixteen chemical sensors in a mixture of ethylene and carbon monoxide.

    Time and the two concentrations are left out, and then, one after another, the first sensor
    that correlates with another one by more than 0.98. All is in deviations from the mean, of all
    rows. The rows stay in the order of the file.

    Args:
        path: Path of a `.npy` or `.csv` file with the columns of the authors' table, time, two
            concentrations, sixteen sensors. Theirs, a quarter of UCI's rows, is a pickle, which is
            not read here: `numpy.save("gas.npy", pandas.read_pickle("ethylene_CO.pickle"))`.
        split: Name of the split, "train", "val" or "test".

    Returns:
        A source of `vector`, of the authors' table f32[8].

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another split, or a file of anything but finite numbers [N, 19].
    """
    rows = _table(path, split, GAS_COLUMNS)[:, 3:]
    while (alike := (np.atleast_2d(np.corrcoef(rows.T)) > _CORRELATED).sum(axis=1) > 1).any():
        rows = np.delete(rows, int(np.argmax(alike)), axis=1)
    parts = _in_three(rows)
    return _source("gas", path, split, parts, rows.mean(axis=0), rows.std(axis=0, ddof=1))


def _table(path: str | Path, split: str, columns: int) -> np.ndarray:
    """The file's numbers, f64 [N, columns]."""
    path = Path(path)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if path.suffix.lower() not in (".npy", ".csv"):
        raise ValueError(f"the file must end in .npy or .csv, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    rows = read_npy(path) if path.suffix.lower() == ".npy" else read_csv(path)
    if rows.dtype.kind not in "biuf" or rows.ndim != 2 or rows.shape[1] != columns:
        raise ValueError(
            f"{path} must hold real numbers [N, {columns}], got {rows.dtype} {list(rows.shape)}"
        )
    if len(rows) < 20:
        raise ValueError(f"{path} must have at least 20 rows, got {len(rows)}")
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0] + 1
        raise ValueError(f"{path} must hold finite numbers: row {row}, column {column} is not")
    return rows


def _in_three(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train, val and test: a tenth, rounded down, from the end, and another one."""
    rows, test = np.split(rows, [len(rows) - len(rows) // 10])
    train, val = np.split(rows, [len(rows) - len(rows) // 10])
    return train, val, test


def _source(
    name: str,
    path: str | Path,
    split: str,
    parts: tuple[np.ndarray, ...],
    mean: np.ndarray,
    deviation: np.ndarray,
) -> ArraySource:
    rows = standardized(parts[SPLITS.index(split)], mean, deviation, f"{path}, what is kept of it,")
    protocol = f"{name} (Papamakarios et al. 2017), split {split} ({len(rows)} vectors)"
    return ArraySource({"vector": rows}, name=name, split=split, protocol=protocol)
