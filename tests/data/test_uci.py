"""POWER and GAS: the published preprocessing, by values and by properties; bad files."""

import numpy as np
import pytest

from jaxgen.data.uci import SPLITS, gas, power
from jaxgen.data.vectors import load_vectors


def table():
    i = np.arange(200.0)[:, None]
    return np.round(np.cos(i * np.arange(1, 9)) * 50 + i, 3)


def test_power(tmp_path):
    """First and last rows as the authors' code gives them for this table."""
    np.save(tmp_path / "data.npy", table())
    parts = {split: power(tmp_path / "data.npy", split).arrays["vector"] for split in SPLITS}
    assert {k: v.shape for k, v in parts.items()} == {
        "train": (162, 6),
        "val": (18, 6),
        "test": (20, 6),
    }
    ends = {
        ("train", 0): [0.47428, -0.54236, -0.64984, -0.2062, 0.33266, 0.65291],
        ("train", -1): [0.17119, 1.25763, 0.00918, 1.23286, 0.34575, -0.03634],
        ("val", 0): [0.34993, 0.94631, 1.54701, 0.26763, 1.70125, 0.50247],
        ("val", -1): [1.2235, 1.83519, 0.73407, 1.14704, 2.12813, 1.3154],
        ("test", 0): [-1.0411, -2.21584, -1.21813, -0.73821, -0.88547, -1.54261],
        ("test", -1): [0.11657, -0.18857, 0.39191, -0.55691, -0.43107, 0.55127],
    }
    for (split, row), values in ends.items():
        np.testing.assert_allclose(parts[split][row], values, atol=1e-5)
    known = np.concatenate([parts["train"], parts["val"]])
    np.testing.assert_allclose(known.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(known.std(axis=0), 1, atol=1e-6)


def test_gas(tmp_path):
    """Of sensors that are alike the last one stays; deviations are of all rows, of n - 1."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 19))
    rows[:, 5] = 2 * rows[:, 10] + 1  # sensors 2 and 7 (from 0), correlated by 1
    rows[:, 4] = -rows[:, 18]  # by -1: not alike
    rows[:, 7] = rows[:, 10] + 0.1 * rows[:, 7]  # sensor 4, by more than 0.98
    np.save(tmp_path / "gas.npy", rows)
    parts = [gas(tmp_path / "gas.npy", split).arrays["vector"] for split in SPLITS]
    assert [len(part) for part in parts] == [324, 36, 40]
    kept = np.delete(rows[:, 3:], (2, 4), axis=1)
    expected = (kept - kept.mean(axis=0)) / kept.std(axis=0, ddof=1)
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)


def test_by_name(tmp_path):
    np.save(tmp_path / "data.npy", table())
    np.savetxt(tmp_path / "data.csv", table(), delimiter=",")
    source = load_vectors("power", "val", tmp_path / "data.npy")
    assert "power (Papamakarios et al. 2017), split val (18 vectors)" in source.protocol
    same = load_vectors("power", "val", tmp_path / "data.csv")
    np.testing.assert_array_equal(source.arrays["vector"], same.arrays["vector"])
    with pytest.raises(ValueError, match=r"'gas' needs --data\.dir"):
        load_vectors("gas")


def test_bad_files(tmp_path):
    np.save(tmp_path / "narrow.npy", np.ones((50, 7)))
    np.save(tmp_path / "few.npy", np.ones((19, 8)))
    spoiled = table()
    spoiled[3, 2] = np.nan
    np.save(tmp_path / "nan.npy", spoiled)
    flat = table()
    flat[:, 7] = 5
    np.save(tmp_path / "flat.npy", flat)
    for name, split, message in (
        ("narrow.npy", "train", r"narrow\.npy must hold real numbers \[N, 8\], got float64 \[50"),
        ("few.npy", "train", r"few\.npy must have at least 20 rows, got 19"),
        ("nan.npy", "train", r"nan\.npy must hold finite numbers: row 4, column 3 is not"),
        (
            "flat.npy",
            "test",
            r"flat\.npy, .* cannot be standardized: column 6 has a dev",
        ),
        ("flat.npy", "valid", "split must be one of train, val, test, got 'valid'"),
        ("data.pickle", "train", r"must end in \.npy or \.csv, got .*data\.pickle"),
    ):
        with pytest.raises(ValueError, match=message):
            power(tmp_path / name, split)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        gas(tmp_path / "gas.npy")
