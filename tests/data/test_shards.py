"""WebDataset shards: tar files read at random."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.captions import decode_text
from jaxgen.data.shards import shards
from jaxgen.data.sources import Source, load, load_pair, resident


def _picture(value, suffix="png", size=(5, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, suffix, lossless=True)
    return file.getvalue()


def _write(path, members):
    """A tar file of name -> bytes, text or the value of a picture, one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            if isinstance(content, int):
                content = _picture(content, name.rpartition(".")[2].lower())
            elif isinstance(content, str):
                content = content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _sample(key, value, text="a", label=0, fields='{"attributes": []}'):
    parts = {"png": value, "txt": text, "cls": str(label), "json": fields}
    return [(f"{key}.{suffix}", part) for suffix, part in parts.items()]


def test_samples_are_read_at_random(tmp_path):
    """Shards by their names, members in their order; a key ends at the first dot of a name."""
    long = "d" * 120 + "/"  # more than a header of the old form holds
    _write(tmp_path / "b.tar", [*_sample("x", 30, "three\n", 2), *_sample(f"{long}x", 40, "four")])
    members = [
        ("./v1.0/p.txt", "one"),
        ("./v1.0/p.cls", "1\n"),
        ("./v1.0/p.png", 10),
        ("./v1.0/p.json", '{"attributes": ["hat"], "text": "not read", "key": "p"}'),
        ("v1.0/q.webp", 20),
        *_sample("v1.0/q", 0, ("two"), 1, '{"attributes": ["tie", "hat"]}')[1:],
    ]
    _write(tmp_path / "a.tar", members)
    source = load("shards", None, tmp_path)
    assert isinstance(source, Source)
    assert source.spec["image"] == ((4, 5, 3), np.uint8)
    assert (source.num_classes, source.class_names) == (3, ())
    batch = source[np.array([3, 0, 1, 2, 0])]
    np.testing.assert_array_equal(batch["image"][:, 3, 4, 0], [40, 10, 20, 30, 10])
    np.testing.assert_array_equal(batch["label"], [0, 1, 1, 2, 1])
    said = [("four",), ("one",), ("two",), ("three",), ("one",)]
    assert decode_text(batch["text"]) == said
    assert source.attribute_names == ("hat", "tie")
    np.testing.assert_array_equal(batch["attributes"], [[0, 0], [1, 0], [1, 1], [0, 0], [1, 0]])
    np.testing.assert_array_equal(resident(source).arrays["image"][0], batch["image"][1])
    assert resident(source).num_classes == 3
    assert "shards, split all (4 images), as they are, content" in source.protocol


def test_images_alone(tmp_path):
    """Folders, hidden members, and other members, which are counted."""
    path = _write(tmp_path / "a.tar", [("0.jpg", _picture(9, "jpeg")), ("._0.jpg", "x")])
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("0.npy", "0.seg.png", "1"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.warns(UserWarning, match=r"3 members of other kinds \(\., \.npy, \.seg\.png\) are"):
        source = shards(tmp_path, resize=2)
    assert source.spec == {"image": ((2, 2, 3), np.uint8)}
    assert source.num_classes is None
    assert abs(int(source[np.array([0])]["image"].mean()) - 9) < 2
    assert "resized to 2x2" in source.protocol


def test_shards_are_known_by_their_content(tmp_path):
    members = [*_sample("x", 30), *_sample("y", 40)]
    digests = [shards(_write(tmp_path / "a" / "0.tar", members).parent).digest]
    moved = shards(_write(tmp_path / "b" / "00.tar", members).parent)
    assert moved.digest == resident(moved).digest == digests[0]
    for other in (
        [*_sample("x", 31), *_sample("y", 40)],
        [*_sample("y", 40), *_sample("x", 30)],
        [*_sample("x", 30, label=1), *_sample("y", 40)],
        [*_sample("x", 30, text="b"), *_sample("y", 40)],
        [*_sample("x", 30)],
    ):
        digests.append(shards(_write(tmp_path / "b" / "00.tar", other).parent).digest)
    assert len(set(digests)) == len(digests)


def test_splits_by_keys_and_by_subfolders(tmp_path):
    """Held-out samples have the attributes of training, and as many classes."""
    every = [
        sample
        for i in range(40)
        for sample in _sample(f"{i}", i, str(i), i, f'{{"odd": {i % 2}, "even": {1 - i % 2}}}')
    ]
    _write(tmp_path / "one" / "0.tar", every[:80])
    _write(tmp_path / "one" / "1.tar", every[80:])
    train, held_out = load_pair("shards", ("train", "test"), tmp_path / "one")
    assert len(train) + len(held_out) == 40
    assert 0 < len(held_out) < 10
    assert train.num_classes == held_out.num_classes == 40
    for source in (train, held_out):
        batch = source[np.arange(len(source))]
        values = batch["image"][:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(batch["label"], values)
        assert decode_text(batch["text"]) == [(str(value),) for value in values]
        odd = values % 2
        np.testing.assert_array_equal(batch["attributes"], np.stack([1 - odd, odd], 1))
    how = f"({len(held_out)} images of 40, by a hash of their keys)"
    assert f"split test {how}" in held_out.protocol
    assert len({train.digest, held_out.digest, train.source.digest, held_out.source.digest}) == 4
    _write(tmp_path / "two" / "train" / "0.tar", _sample("0", 0, fields='{"attributes": ["hat"]}'))
    _write(tmp_path / "two" / "val" / "0.tar", _sample("0", 0, fields='{"attributes": ["wig"]}'))
    with pytest.raises(FileNotFoundError, match="no folder of shards .*two/test, only train, val"):
        load_pair("shards", ("train", "test"), tmp_path / "two")
    with pytest.raises(
        ValueError, match=r"val/0\.tar: 0 \(\.txt, \.json\): .* 'wig' holds in no training"
    ):
        load_pair("shards", ("train", "val"), tmp_path / "two")


GOOD = [("0.png", 1), ("0.txt", "a")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*GOOD, ("1.txt", "b")], r"1\.txt is of no image"),
        ([*GOOD, ("0.txt", "b")], r"0\.txt is there twice"),
        ([*GOOD, ("./0.txt", "b")], r"\./0\.txt is there twice"),
        ([*GOOD, ("0.jpg", _picture(3, "jpeg"))], r"0\.jpg is one more image of 0\.png"),
        ([*GOOD, ("1.png", 2)], r"1: 'text' must be a caption"),
        ([*GOOD, ("1.png", 2), ("1.txt", " ")], r"1\.txt: a caption must not be empty"),
        ([*GOOD, ("1.png", 2), ("1.txt", b"\xff")], r"1\.txt: it is not in UTF-8"),
        ([*GOOD, ("0.json", "{")], r"0\.json: it cannot be read as JSON"),
        ([*GOOD, ("0.json", "[]")], r"0\.json: it must be a JSON object"),
        ([*GOOD, ("0.cls", "-1")], r"0\.cls must be the number of a class.* '-1'"),
        ([*GOOD, ("0.cls", "9" * 5000)], r"0\.cls must be the number of a class"),
        ([*GOOD, ("0.cls", "1"), ("1.png", 2), ("1.txt", "b")], r"1\.txt: the class is missing"),
        ([*GOOD, ("1.png", "x")], r"the image .*a\.tar: 1\.png"),
        ([*GOOD, ("1.png", _picture(1, size=(3, 3)))], r"a\.tar: 1\.png is 3x3 .*0\.png is 4x5"),
    ],
)
def test_bad_members_are_named(tmp_path, members, message):
    _write(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message) as caught:
        shards(tmp_path)
    assert f"{tmp_path / 'a.tar'}: " in str(caught.value)


def test_a_broken_image_is_named_when_it_is_read(tmp_path):
    broken = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(broken).save(file, "png")
    _write(tmp_path / "a.tar", [("0.png", file.getvalue()[:2000])])
    source = shards(tmp_path)
    with pytest.raises(ValueError, match=r"cannot decode the image .*a\.tar: 0\.png"):
        source[np.array([0])]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_links_are_refused(tmp_path, kind):
    path = _write(tmp_path / "a.tar", GOOD)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = kind, "0.png"
        tar.addfile(link)
    with pytest.raises(ValueError, match=r"a\.tar: 1\.png is no file but a link, say: .* --deref"):
        shards(tmp_path)


def test_compressed_shards_are_refused(tmp_path):
    content = _write(tmp_path / "a" / "a.tar", GOOD).read_bytes()
    for name, data in (("b.tar.gz", b"anything"), ("c.tar", gzip.compress(content))):
        (tmp_path / name[0]).mkdir(exist_ok=True)
        (tmp_path / name[0] / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} is compressed, .* unpack it to a plain \.t"):
            shards(tmp_path / name[0])


def test_damaged_shards_are_named(tmp_path):
    """Cut off anywhere, damaged in a header, or two in one file: nothing is lost in silence."""
    path = _write(tmp_path / "a.tar", [*GOOD, ("1.png", 2), ("1.txt", "b")])
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        places = [(member.offset, member.offset_data, member.size) for member in tar]
    assert len(shards(tmp_path)) == 2
    damaged = bytearray(content)
    damaged[places[2][0]] ^= 1
    cuts = [content[: place + part] for _, place, size in places[1:] for part in (0, size // 2)]
    cuts += [content[: place + 100] for place, _, _ in places]
    for data in (*cuts, bytes(damaged), content + content, b"", b"no tar file" * 1000):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.tar cannot be read as a tar file: "):
            shards(tmp_path)
    path.write_bytes(content.rstrip(b"\0") + bytes(512))  # without the blocks of the end
    assert len(shards(tmp_path)) == 2


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="'shards' needs data_dir .*the folder of tar files"):
        load("shards")
    with pytest.raises(FileNotFoundError, match="no tar files in"):
        shards(tmp_path)
    _write(tmp_path / "a.tar", [])
    with pytest.raises(ValueError, match=r"no images \(\.bmp.* in the tar files of"):
        shards(tmp_path)
    with pytest.raises(ValueError, match="resize must be"):
        shards(tmp_path, resize=0)
