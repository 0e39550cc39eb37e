"""Folders of images."""

import io
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from jaxgen.data.binarize import static
from jaxgen.data.images import decode_image, folder
from jaxgen.data.sources import Source, load, load_pair, resident


def _image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def test_classes_are_the_sorted_subfolders(tmp_path):
    images = [
        _save(tmp_path / "train" / name, _image((6, 5, 3), i))
        for i, name in enumerate(("ant/1.png", "ant/2.PNG", "bee/0.bmp"))
    ]
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    with pytest.warns(UserWarning, match=r"train: 1 files of other kinds \(\.txt\) are left out"):
        source = folder(tmp_path, "train")
    assert isinstance(source, Source)
    assert source.class_names == ("ant", "bee")
    assert source.num_classes == 2
    assert source.spec == {"image": ((6, 5, 3), np.uint8), "label": ((), np.int32)}
    batch = source[np.asarray([2, 0, 1, 0])]
    np.testing.assert_array_equal(batch["image"], [images[i] for i in (2, 0, 1, 0)])
    np.testing.assert_array_equal(batch["label"], [1, 0, 0, 0])
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(resident(source).arrays["image"], images)


def test_what_lies_deeper_and_what_is_hidden(tmp_path):
    """An image anywhere below a class is of it; Jupyter's copies and macOS's are no data."""
    for name in ("cat/0.png", "cat/more/1.png", "dog/0.png", ".ipynb_checkpoints/0.png"):
        _save(tmp_path / "a" / name, _image((4, 4)))
    (tmp_path / "a" / "__MACOSX").mkdir()
    for name in ("__MACOSX/2.png", "dog/._0.png", ".DS_Store"):
        (tmp_path / "a" / name).write_bytes(b"nothing")
    (tmp_path / "elsewhere").mkdir()
    _save(tmp_path / "elsewhere" / "3.png", _image((4, 4)))
    (tmp_path / "a" / "eel").symlink_to(tmp_path / "elsewhere")
    source = folder(tmp_path / "a")
    assert source.class_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 2])


@pytest.mark.parametrize("prefix", ["", "cat/", "dog/more/"])
def test_a_folder_without_splits_is_split_by_names(tmp_path, prefix):
    """Images of several sizes, some held out; more images leave each one where it is."""
    for i in range(60):
        _save(tmp_path / "photos" / f"{prefix}{i}.png", _image((4 + i % 3, 5, 3), i))
    options = {"data_dir": tmp_path / "photos", "resize": 4}
    train, held_out = load_pair("folder", ("train", "test"), **options)
    whole = load("folder", "all", **options)
    assert len(train) + len(held_out) == len(whole) == 60
    assert 0 < len(held_out) < 12
    assert not set(train.files) & set(held_out.files)
    assert train.class_names == ((prefix.split("/")[0],) if prefix else ())
    assert f"split train ({len(train)} images of 60, by a hash of their names)" in train.protocol
    for i in range(60, 70):
        _save(tmp_path / "photos" / f"{prefix}{i}.png", _image((4, 5, 3), i))
    more = load("folder", "test", **options)
    assert set(held_out.files) <= set(more.files)


def test_folders_that_are_not_split_by_names(tmp_path):
    """One of another name than the split's is named, and one image alone is no two sets."""
    _save(tmp_path / "a" / "0.png", _image((4, 4)))
    with pytest.raises(ValueError, match=r"0\.png is the only file, so none can be held out"):
        folder(tmp_path / "a", "test")
    _save(tmp_path / "b" / "Train" / "0.png", _image((4, 4)))
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*b/train, only Train: .* --data\.split"
    ):
        folder(tmp_path / "b", "train")


def test_a_folder_is_known_by_its_content(tmp_path):
    """It may move; another class, another name of one, another file make another set."""
    for i, name in enumerate(("ant/1.png", "bee/2.png", "bee/3.png")):
        _save(tmp_path / "a" / name, _image((6, 5, 3), i))
    first = folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = folder(tmp_path / "b")
    assert moved.digest == resident(moved).digest == first.digest
    assert moved.protocol == first.protocol
    np.testing.assert_array_equal(static(moved).arrays["image"], static(first).arrays["image"])
    assert first.protocol.endswith(f"as they are, content {first.digest}")
    (tmp_path / "b" / "bee").rename(tmp_path / "b" / "wasp")
    renamed = folder(tmp_path / "b").digest
    (tmp_path / "a" / "bee" / "3.png").unlink()
    fewer = folder(tmp_path / "a").digest
    _save(tmp_path / "a" / "bee" / "3.png", _image((6, 5, 3), 7))
    assert len({first.digest, renamed, fewer, folder(tmp_path / "a").digest}) == 4


def test_a_flat_folder_of_gray_images_has_one_channel_and_no_label(tmp_path):
    image = _save(tmp_path / "a.png", _image((4, 4)))
    source = load("folder", data_dir=tmp_path)
    assert source.num_classes is None
    assert source.spec == {"image": ((4, 4, 1), np.uint8)}
    np.testing.assert_array_equal(source[np.asarray([0])]["image"][0, ..., 0], image)


def test_one_colour_image_makes_all_rgb(tmp_path):
    gray = _save(tmp_path / "a.png", _image((4, 4)))
    _save(tmp_path / "b.png", _image((4, 4, 4)))
    source = folder(tmp_path)
    assert source.spec["image"][0] == (4, 4, 3)
    np.testing.assert_array_equal(source[np.asarray([0])]["image"][0], np.stack([gray] * 3, -1))


def test_held_out_classes_are_numbered_as_the_training_classes(tmp_path):
    """A class without a held-out image moves no label; an unknown one is refused."""
    for i, name in enumerate(("train/bird", "train/cat", "train/dog", "test/cat", "test/dog")):
        _save(tmp_path / name / "0.png", _image((4, 4), i))
    train, held_out = load_pair("folder", ("train", "test"), tmp_path)
    assert train.class_names == held_out.class_names == ("bird", "cat", "dog")
    np.testing.assert_array_equal(held_out[np.arange(2)]["label"], [1, 2])
    assert held_out.num_classes == 3
    _save(tmp_path / "test" / "eel" / "0.png", _image((4, 4)))
    with pytest.raises(ValueError, match=r"test has images of the class eel, and .* bird, c"):
        load_pair("folder", ("train", "test"), tmp_path)
    shutil.rmtree(tmp_path / "test")
    _save(tmp_path / "test" / "0.png", _image((4, 4)))
    with pytest.raises(ValueError, match=r"split test\) differ in 'label'"):
        load_pair("folder", ("train", "test"), tmp_path)
    shutil.rmtree(tmp_path / "test")
    _save(tmp_path / "test" / "cat" / "0.png", _image((4, 4, 3)))
    with pytest.raises(ValueError, match=r"uint8\[4, 4, 1\] and uint8\[4, 4, 3\]"):
        load_pair("folder", ("train", "test"), tmp_path)


def test_resize_crops_the_center(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200  # the center square
    _save(tmp_path / "a.png", wide)
    _save(tmp_path / "b.png", _image((9, 7, 3)))
    source = folder(tmp_path, resize=2)
    assert source.spec["image"][0] == (2, 2, 3)
    batch = source[np.asarray([0, 1])]
    assert (batch["image"][0] > 180).all()
    assert "center-cropped and resized to 2x2" in source.protocol
    assert folder(tmp_path, resize=(3, 5)).spec["image"][0] == (3, 5, 3)


def test_mixed_sizes_name_the_file(tmp_path):
    _save(tmp_path / "a.png", _image((4, 4, 3)))
    _save(tmp_path / "b.png", _image((5, 4, 3)))
    with pytest.raises(ValueError, match=r"b\.png is 5x4.*a\.png is 4x4.*resize="):
        folder(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path):
    _save(tmp_path / "a.png", _image((4, 4, 3)))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.jpg"):
        folder(tmp_path)


def test_a_truncated_file_is_named_when_it_is_read(tmp_path):
    _save(tmp_path / "a.png", _image((64, 64, 3)))
    path = tmp_path / "a.png"
    path.write_bytes(path.read_bytes()[:5000])
    source = folder(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png"):
        source[np.asarray([0])]


def test_a_file_that_changed_its_size_is_named(tmp_path):
    _save(tmp_path / "a.png", _image((4, 4, 3)))
    source = folder(tmp_path)
    _save(tmp_path / "a.png", _image((5, 4, 3)))
    with pytest.raises(ValueError, match=r"a\.png is 5x4"):
        source[np.asarray([0])]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_the_orientation_is_applied(tmp_path, suffix, orientation):
    """Each of the eight ways to lay a picture down says how it stands; sizes are those upright."""
    upright = np.zeros((24, 16), np.uint8)
    upright[:8, :8], upright[:8, 8:] = 250, 120  # corners that tell all eight apart
    laid = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(laid)).save(tmp_path / f"a{suffix}", exif=exif)
    _save(tmp_path / "b.png", upright)
    tagged, plain = folder(tmp_path)[np.arange(2)]["image"].astype(int)
    assert np.abs(tagged - plain).max() < 12
    small = folder(tmp_path, resize=(12, 8))[np.arange(2)]["image"].astype(int)
    assert np.abs(small[0] - small[1]).max() < 12


def test_metadata_that_cannot_be_read_are_none(tmp_path):
    Image.fromarray(_image((4, 6))).save(tmp_path / "a.jpg", exif=b"Exif\0\0nothing")
    assert folder(tmp_path).spec["image"][0] == (4, 6, 1)
    assert folder(tmp_path)[np.asarray([0])]["image"].shape == (1, 4, 6, 1)


def test_transparent_pixels_are_white(tmp_path):
    """Whatever colour stands below, half of it where it is half transparent; the protocol says so.

    Of true colours, of gray, of a palette; by a channel or by one transparent value.
    """
    below = _image((4, 4, 4))
    below[..., 3] = 0
    below[0, 0] = (200, 100, 0, 255)
    below[0, 1] = (200, 100, 0, 128)
    _save(tmp_path / "a" / "a.png", below)
    Image.fromarray(below).save(tmp_path / "a" / "b.webp", lossless=True, exact=True)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([200, 100, 0, 9, 9, 9])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "a" / "c.png", transparency=1)
    palette.save(tmp_path / "a" / "d.gif", transparency=1)
    source = folder(tmp_path / "a")
    images = source[np.arange(4)]["image"].astype(int)
    np.testing.assert_array_equal(images[:, 0, 0], [[200, 100, 0]] * 4)
    assert (images[:, 1:] == 255).all()
    np.testing.assert_allclose(images[:2, 0, 1], [[227, 177, 127]] * 2, atol=1)
    assert "as they are, what is transparent on white, content" in source.protocol
    gray = Image.new("LA", (4, 4), (7, 0))
    (tmp_path / "b").mkdir()
    gray.save(tmp_path / "b" / "gray.png")
    source = folder(tmp_path / "b")
    assert source.spec["image"][0] == (4, 4, 1)
    assert (source[np.asarray([0])]["image"] == 255).all()
    _save(tmp_path / "b" / "gray.png", _image((4, 4)))
    assert "transparent" not in folder(tmp_path / "b").protocol


def _sixteen_bits(color, channels):
    """A PNG of 2x2 pixels, written byte by byte: Pillow writes no 16-bit colours."""
    chunk = lambda name, data: (  # noqa: E731
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    )
    header = struct.pack(">IIBBBBB", 2, 2, 16, color, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(2 * 2 * channels)) * 2)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("gray.png", _sixteen_bits(0, 1), id="gray.png"),
        pytest.param("colour.png", _sixteen_bits(2, 3), id="colour.png"),
        pytest.param("gray_alpha.png", _sixteen_bits(4, 2), id="gray_alpha.png"),
        pytest.param("alpha.png", _sixteen_bits(6, 4), id="alpha.png"),
        pytest.param("gray.ppm", b"P5 2 2 65535\n" + bytes(8), id="gray.ppm"),
        pytest.param("colour.ppm", b"P6 2 2 65535\n" + bytes(24), id="colour.ppm"),
        pytest.param("plain.ppm", b"P3 2 2 65535\n" + b"1 " * 12, id="plain.ppm"),
    ],
)
def test_sixteen_bit_images_are_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}.*more than 8 bits a channel"):
        folder(tmp_path)


def test_other_formats_by_the_name_of_an_image_are_refused(tmp_path, monkeypatch):
    """A PostScript file by the name a.png does not come near Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kw: pytest.fail("it ran"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(script)
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.png"):
        folder(tmp_path)
    with pytest.raises(ValueError, match="cannot decode the image x"):
        decode_image(io.BytesIO(script), (4, 4, 3), "x", resize=False)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        folder(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"no images \(\.bmp"):
        folder(tmp_path)
    _save(tmp_path / "a.png", _image((4, 4)))
    with pytest.raises(FileNotFoundError, match="valid"):
        folder(tmp_path, "valid")
    _save(tmp_path / "cat" / "a.png", _image((4, 4)))
    with pytest.raises(ValueError, match=r"holds images \(a\.png.*folders of images \(cat\)"):
        folder(tmp_path)
    with pytest.raises(ValueError, match="resize must be"):
        folder(tmp_path, resize=0)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="a batch of 1 images of 10000000x10000000x1 would take"):
        folder(tmp_path, resize=10_000_000)[np.asarray([0])]
