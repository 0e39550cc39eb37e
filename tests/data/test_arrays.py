"""Arrays from files: what is broken is named; 32 bits of 64 are the same numbers."""

import io
import re
import zipfile

import numpy as np
import pytest

from jaxgen.data.arrays import as_float32, as_stored, read_csv, read_npy, read_npz

NUMBERS = "1.5,-2,3e2\n4,5,6\n"
EXPECTED = [[1.5, -2, 300], [4, 5, 6]]


@pytest.mark.parametrize(
    "text",
    [
        NUMBERS.encode(),
        NUMBERS.encode("utf-8-sig"),
        NUMBERS.replace("\n", "\r\n").encode(),
        b'"1.5","-2","3e2"\n"4","5",6\n',
        b"# a comment\n\n1.5, -2, 3e2\n4,5,6",
    ],
)
def test_numbers_are_read(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text)
    np.testing.assert_array_equal(read_csv(tmp_path / "a.csv"), EXPECTED)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("height,weight,age\n" + NUMBERS, r"line 1 is a header \(height,weight,age\), remove it"),
        (NUMBERS + "7,,9\n", "line 3, column 2 is empty"),
        (NUMBERS + "\n7,8,nine\n", "line 4, column 3 is 'nine', no number"),
        (NUMBERS + "7,8\n", "line 3 has 2 values, line 1 has 3"),
        ("1;2;3\n", r"line 1 \(1;2;3\) is separated by other marks"),
        ("1,5;2,5\n", r"line 1 \(1,5;2,5\) is separated by other marks"),
        ("1 2 3\n", r"line 1 \(1 2 3\) is separated by other marks"),
        ((NUMBERS + "größe,1,2\n").encode("latin1"), "line 3 is no UTF-8 text"),
        (NUMBERS.encode("utf-16"), "line 1 is no UTF-8 text"),
    ],
)
def test_the_first_wrong_line_is_named(tmp_path, text, wrong):
    (tmp_path / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = rf"a\.csv: {wrong}; wanted are numbers separated by commas, a row in each line"
    with pytest.raises(ValueError, match=message):
        read_csv(tmp_path / "a.csv")


def _npy(shape, dtype="<f4", held=24):
    """A `.npy` file whose header promises whatever it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + bytes(held)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "magic string"),
        (b"words, many of them", "magic string"),
        (_npy((2, 4)), "its header promises 32 bytes of float32(2, 4), it has 24"),
        (_npy((2**40, 2**20)), "promises 4611686018427387904 bytes"),
        (_npy((3,), "|O"), "it holds Python objects"),
        (_npy((2, 3))[:100], "EOF"),
    ],
)
def test_broken_arrays_are_named(tmp_path, data, wrong):
    """Before their memory is asked for; alone and in an archive."""
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.npy cannot be read as .*{re.escape(wrong)}"):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with pytest.raises(ValueError, match=rf"a\.npz cannot be read as .*{re.escape(wrong)}"):
        read_npz(tmp_path / "a.npz")


def test_archives(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(6).reshape(2, 3), y=np.float32(3))
    arrays = read_npz(tmp_path / "a.npz")
    assert list(arrays) == ["x", "y"]
    np.testing.assert_array_equal(arrays["x"], [[0, 1, 2], [3, 4, 5]])
    assert list(read_npz(tmp_path / "a.npz", ["y"])) == ["y"]
    with pytest.raises(ValueError, match=r"a\.npz cannot be read .*no item named 'z\.npy'"):
        read_npz(tmp_path / "a.npz", ["z"])
    (tmp_path / "b.npz").write_bytes(b"PK\3\4junk")
    with pytest.raises(ValueError, match=r"b\.npz cannot be read as a \.npz file"):
        read_npz(tmp_path / "b.npz")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "c.npz")


COLUMN = np.linspace(-1, 1, 11)[:, None]


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        (np.ones((2, 2), complex), "must hold real numbers, got complex128"),
        (np.full((2, 2), "a"), "must hold real numbers, got <U1"),
        (np.array([[0, 1], [2, np.nan]]), "row 2, column 2 (from 1) is nan"),
        (np.array([[0, -1e39], [2, 3]]), "row 1, column 2 (from 1) is -1e+39 is beyond float32"),
        (np.hstack([COLUMN, COLUMN + 1e9]), "column 2 around 1e+09 with a deviation of 0.632"),
        (COLUMN * 1e-42, "which float32 rounds by up to 1e-42"),
        (np.arange(2**53, 2**53 + 10)[:, None], "column 1 around 9.0072e+15"),
    ],
)
def test_what_float32_cannot_hold(values, wrong):
    with pytest.raises(ValueError, match=re.escape(wrong)):
        as_float32(values, "it")


def test_what_float32_holds():
    for values in (COLUMN, COLUMN + 1000, 1e30 * COLUMN, COLUMN > 0, np.full((3, 1), 2**40 + 1)):
        narrow = as_float32(values, "it")
        assert narrow.dtype == np.float32
        np.testing.assert_allclose(narrow, values, rtol=1e-6)
    assert as_float32(np.zeros((0, 3)), "it").shape == (0, 3)


def test_what_is_stored():
    """Of 64 bits 32, if they are the same numbers."""
    assert as_stored(np.arange(3), "it").dtype == np.int32
    assert as_stored(COLUMN, "it").dtype == np.float32
    for kept in (np.zeros(3, np.uint8), np.zeros(3, np.float16), np.zeros(3, bool)):
        assert as_stored(kept, "it") is kept
    for wrong in (np.array([2**31]), np.array([-(2**31) - 1]), np.array([2**63], np.uint64)):
        with pytest.raises(ValueError, match="it must be in the range of int32, got"):
            as_stored(wrong, "it")
    with pytest.raises(ValueError, match=r"row 1 \(from 1\) is nan"):
        as_stored(np.array([np.nan]), "it")
    for wrong in (np.array(["a"]), np.array([1j]), np.array([None])):
        with pytest.raises(TypeError, match="it must hold real numbers, got"):
            as_stored(wrong, "it")
