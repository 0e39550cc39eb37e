"""Vectors as data: their densities, fixed draws, files, and bad input."""

import numpy as np
import pytest

from jaxgen.data.vectors import checkerboard, from_file, load_vectors, two_moons


def test_two_moons():
    train, test = two_moons(), two_moons("test")
    assert (len(train), len(test)) == (20_000, 5_000)
    np.testing.assert_array_equal(train.arrays["vector"], two_moons().arrays["vector"])
    assert not np.isin(test.arrays["vector"][:100, 0], train.arrays["vector"][:, 0]).any()
    exact = two_moons("train", noise=0.0)
    points, label = exact.arrays["vector"], exact.arrays["label"]
    center = np.where(label[:, None] == 0, [0.0, 0.0], [1.0, 0.5])
    np.testing.assert_allclose(np.linalg.norm(points - center, axis=1), 1.0, atol=1e-6)
    above = np.where(label == 0, points[:, 1], 0.5 - points[:, 1])
    assert above.min() >= -1e-6


def test_checkerboard():
    """Uniform on eight squares, none of which touch but at corners."""
    points = checkerboard().arrays["vector"]
    cells = np.floor((points + 4) / 2).astype(int)
    assert cells.min() == 0
    assert cells.max() == 3
    assert ((cells.sum(axis=1) % 2) == 0).all()
    counts = np.unique(cells @ [4, 1], return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() > 2500 - 5 * 50
    assert "checkerboard" in checkerboard("test").protocol


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_files_are_split_by_rows(tmp_path, suffix):
    rows = np.arange(60, dtype=np.float64).reshape(20, 3) / 8
    path = tmp_path / f"rows{suffix}"
    if suffix == ".npy":
        np.save(path, rows)
    else:
        np.savetxt(path, rows, delimiter=",")
    np.testing.assert_array_equal(from_file(path, "test").arrays["vector"], rows[[9, 19]])
    train = load_vectors("file", "train", path)
    assert len(train) == 18
    assert train.arrays["vector"].dtype == np.float32


def test_npz_has_its_own_splits(tmp_path):
    np.savez(tmp_path / "rows.npz", train=np.ones((3, 2)), valid=np.zeros((2, 2)))
    assert len(from_file(tmp_path / "rows.npz", "valid")) == 2
    with pytest.raises(ValueError, match=r"no split 'test', only \['train', 'valid'\]"):
        from_file(tmp_path / "rows.npz", "test")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_files_are_standardized_by_train(tmp_path, suffix):
    """In float64, before anything is narrowed: values around 1e9 with a deviation of 1."""
    rows = 1e9 + np.random.default_rng(0).normal(size=(100, 3)) * [1, 2, 3]
    held_out = np.arange(100) % 10 == 9
    train, test = rows[~held_out], rows[held_out]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".npy":
        np.save(path, rows)
    else:
        np.savez(path, train=train, test=test)
    for split, part in (("train", train), ("test", test)):
        source = from_file(path, split, standardize=True)
        expected = (part - train.mean(axis=0)) / train.std(axis=0)
        np.testing.assert_allclose(source.arrays["vector"], expected, rtol=1e-5, atol=1e-6)
        assert "deviations from the mean" in source.protocol
    with pytest.raises(ValueError, match="which float32 rounds by"):
        from_file(path)


def test_what_cannot_be_standardized(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 2))
    rows[:, 1] = 7
    np.save(tmp_path / "flat.npy", rows)
    np.savez(tmp_path / "parts.npz", a=rows, train=np.ones((3, 5)))
    np.savez(tmp_path / "alone.npz", a=rows)
    rows[4, 0] = np.inf
    np.save(tmp_path / "inf.npy", rows)
    for name, split, message in (
        ("flat.npy", "test", r"flat\.npy cannot be standardized: column 2 has a deviation of 0\.0"),
        ("parts.npz", "a", r"cannot be standardized by train, \[3, 5\]"),
        ("alone.npz", "a", r"has no split 'train' to standardize by, only \['a'\]"),
        ("inf.npy", "train", r"inf\.npy must hold finite numbers: row \d+, column 1"),
    ):
        with pytest.raises(ValueError, match=message):
            from_file(tmp_path / name, split, standardize=True)
    with pytest.raises(ValueError, match="standardize is for the data set 'file', got 'two_moons'"):
        load_vectors("two_moons", standardize=True)


def test_bad_input(tmp_path):
    np.save(tmp_path / "flat.npy", np.ones(20))
    np.save(tmp_path / "nan.npy", np.full((20, 2), np.nan))
    (tmp_path / "x.txt").write_text("1")
    np.save(tmp_path / "large.npy", np.full((20, 2), 1e39))
    np.save(tmp_path / "few.npy", np.ones((9, 2)))
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4junk")
    np.savez(tmp_path / "complex.npz", train=np.ones((3, 2)) * 1j)
    for name, split, message in (
        ("flat.npy", "train", r"flat\.npy must hold numbers \[N, D\], got \[20\]"),
        (
            "nan.npy",
            "train",
            r"nan\.npy must hold finite numbers: row 1, column 1 \(from 1\) is nan",
        ),
        ("large.npy", "train", "row 1, column 1 .* is 1e\\+39 is beyond float32"),
        ("few.npy", "test", r"few\.npy must have at least 10 rows, .* got 9"),
        ("bad.npz", "train", r"bad\.npz cannot be read"),
        ("complex.npz", "train", r"complex\.npz, split 'train' must hold real numbers, got compl"),
    ):
        with pytest.raises(ValueError, match=message):
            from_file(tmp_path / name, split)
    with pytest.raises(ValueError, match="must end in"):
        from_file(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        from_file(tmp_path / "y.npy")
    with pytest.raises(ValueError, match=r"needs --data\.dir"):
        load_vectors("file")
    with pytest.raises(ValueError, match="known are two_moons, checkerboard, power, gas and file"):
        load_vectors("moons")
    with pytest.raises(ValueError, match="'train' or 'test', got 'all'"):
        checkerboard("all")
    with pytest.raises(ValueError, match="noise must be at least 0"):
        two_moons("train", noise=-0.1)
