"""Grids put each pixel where it belongs; files say no rather than overwrite."""

import numpy as np
import pytest
from PIL import Image

from jaxgen.training.images import (
    check_output,
    grid,
    is_whole_png,
    labelled_grid,
    save_each,
    save_png,
    save_samples,
)


def images(count=5, height=4, width=6, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (count, height, width, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("count", "columns", "padding", "scale"),
    [(5, None, 2, None), (5, 2, 0, 1), (1, None, 3, 2), (6, 6, 1, 3), (3, 7, 2, 1)],
)
def test_every_image_is_found_again(channels, count, columns, padding, scale):
    batch = images(count, channels=channels)
    canvas = grid(batch, columns, padding, scale)
    columns = columns or int(np.ceil(np.sqrt(count)))
    scale = scale or 11  # 6 pixels wide: 66 is the first multiple of at least 64
    rows = -(-count // columns)
    expected = np.full(
        (rows * (4 * scale + padding) + padding, columns * (6 * scale + padding) + padding, 3), 255
    )
    for index, image in enumerate(batch):
        top = padding + (index // columns) * (4 * scale + padding)
        left = padding + (index % columns) * (6 * scale + padding)
        for y in range(4 * scale):
            for x in range(6 * scale):
                expected[top + y, left + x] = image[y // scale, x // scale]
    assert canvas.dtype == np.uint8
    assert np.array_equal(canvas, expected)


def test_a_grid_that_no_machine_holds():
    with pytest.raises(ValueError, match="a grid of 1 rows and 1000000000000 columns would take"):
        grid(images(), columns=10**12)


@pytest.mark.parametrize(("size", "scale"), [(8, 8), (28, 3), (32, 2), (64, 1)])
def test_small_images_are_enlarged(size, scale):
    canvas = grid(np.zeros((1, size, size, 1), np.uint8), padding=0)
    assert canvas.shape == (size * scale, size * scale, 3)


def test_words_beside_rows_above_columns_and_on_top():
    """The tiles are those of the plain grid, the words are where nothing else is."""
    batch = images(6, 64, 64)
    tiles = grid(batch, 3)
    height, width = tiles.shape[:2]
    assert np.array_equal(labelled_grid(batch, 3), tiles)
    canvas = labelled_grid(batch, 3, rows=["cat", "dog"], heads=["0", "1"], title="Animals")
    assert np.array_equal(canvas[-height:, -width:], tiles)
    title, heads, beside = canvas[:20], canvas[20:40], canvas[40:, :-width]
    assert all((part < 128).any() for part in (title, heads, beside))
    middle = beside.shape[0] // 2
    assert (beside[:middle] < 128).any()
    assert (beside[middle:] < 128).any()
    left = canvas.shape[1] - width
    assert (heads[:, left : left + 66] < 128).any()
    assert (heads[:, left + 2 * 66 :] == 255).all()  # the third column has no word


def test_long_words_stand_above_their_rows():
    """What is too long for the row too is cut."""
    batch = images(6, 64, 64)
    tiles = grid(batch, 3)
    canvas = labelled_grid(batch, 3, rows=["a caption", "a caption longer than its row " * 9])
    assert canvas.shape == (tiles.shape[0] + 2 * 20, *tiles.shape[1:])
    assert (canvas[2:22] < 128).any()
    assert np.array_equal(canvas[22 : 22 + 66], tiles[2 : 2 + 66])
    assert np.array_equal(canvas[-66:], tiles[-66:])
    with pytest.raises(ValueError, match="rows and heads must be at most 2 and 3, got 4 and 0"):
        labelled_grid(batch, 3, rows=["one", "two", "three", "four"])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (images().astype(np.float32), TypeError, r"images .* uint8 .*got float32\[5, 4, 6, 3\]"),
        (images()[0], ValueError, r"\[N, H, W, C\].*got uint8\[4, 6, 3\]"),
        (images(channels=2), ValueError, "C of 1 or 3"),
        (images(count=0), ValueError, "nothing empty"),
        (images(height=0), ValueError, "nothing empty"),
    ],
)
def test_bad_images(tmp_path, batch, error, message):
    with pytest.raises(error, match=message):
        grid(batch)
    with pytest.raises(error, match=message):
        save_samples(tmp_path / "x.png", batch)
    if not batch.size:
        with pytest.raises(error, match=message):
            save_samples(tmp_path / "x.npz", batch)
    assert not list(tmp_path.iterdir())


def test_npz_keeps_what_is_no_image(tmp_path):
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    save_samples(tmp_path / "x.npz", vectors)
    with np.load(tmp_path / "x.npz") as stored:
        np.testing.assert_array_equal(stored["samples"], vectors)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"columns": 0}, "columns"), ({"padding": -1}, "padding"), ({"scale": 0}, "scale")],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=f"{message} must be at least"):
        grid(images(), **options)


def test_png_is_the_grid_and_npz_the_samples(tmp_path):
    batch = images(channels=1)
    save_samples(tmp_path / "new" / "x.PNG", batch)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "x.PNG")), grid(batch))
    save_samples(tmp_path / "x.npz", batch)
    with np.load(tmp_path / "x.npz") as stored:
        assert stored.files == ["samples"]
        assert stored["samples"].dtype == np.uint8
        assert np.array_equal(stored["samples"], batch)


def test_half_a_png_is_none(tmp_path):
    """Cut anywhere, empty, of another kind or not there."""
    path = tmp_path / "x.png"
    save_png(path, np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    assert is_whole_png(path)
    whole = path.read_bytes()
    for size in range(len(whole) - 4):  # of the mark of the end the checksum is not read
        path.write_bytes(whole[:size])
        assert not is_whole_png(path), size
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert not is_whole_png(path)
    Image.new("L", (2, 2)).save(path, format="GIF")
    assert not is_whole_png(path)
    assert not is_whole_png(tmp_path / "none.png")
    assert not is_whole_png(tmp_path)


def test_a_grey_png(tmp_path):
    image = images(channels=1)[0]
    save_png(tmp_path / "x.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), image[:, :, 0])
    with pytest.raises(ValueError, match=r"\[H, W, C\], got uint8\[4, 6\]"):
        save_png(tmp_path / "y.png", image[:, :, 0])


@pytest.mark.parametrize("name", ["x.png", "x.npz"])
def test_nothing_is_overwritten_unasked(tmp_path, name):
    save_samples(tmp_path / name, images(seed=1))
    before = (tmp_path / name).read_bytes()
    with pytest.raises(FileExistsError, match="not overwritten"):
        save_samples(tmp_path / name, images(seed=2))
    assert (tmp_path / name).read_bytes() == before
    save_samples(tmp_path / name, images(seed=2), overwrite=True)
    assert (tmp_path / name).read_bytes() != before


def test_outputs_are_checked_before_the_work(tmp_path):
    for name in ("x.jpg", "x", "x.npy"):
        with pytest.raises(ValueError, match=r"must end in \.png .*; \.npz .*got"):
            check_output(tmp_path / name)
    with pytest.raises(ValueError, match=r"must end in \.png"):
        save_png(tmp_path / "x.npz", images()[0])
    (tmp_path / "x.png").mkdir()
    with pytest.raises(FileExistsError, match="is a directory"):
        check_output(tmp_path / "x.png", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="no writable directory"):
        check_output(tmp_path / "file" / "x.png")
    check_output(tmp_path / "not" / "yet" / "x.png")
    assert not (tmp_path / "not").exists()


def test_one_by_one(tmp_path):
    save_each(tmp_path / "new", images())
    names = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert names[0] == "00000.png"
    assert len(names) == len(images())
    second = np.asarray(Image.open(tmp_path / "new" / "00001.png"))
    assert np.array_equal(second.reshape(images()[1].shape), images()[1])
    with pytest.raises(FileExistsError, match="not empty"):
        save_each(tmp_path / "new", images())
    with pytest.raises(FileExistsError, match="is a file"):
        save_each(tmp_path / "new" / "00000.png", images())
    with pytest.raises(TypeError, match="uint8"):
        save_each(tmp_path / "other", images().astype(np.float32))
