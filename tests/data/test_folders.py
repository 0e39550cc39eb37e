"""What folders and files of examples share."""

import numpy as np
import pytest

from jaxgen.data.folders import content_digest, files_in


def test_links_are_followed(tmp_path):
    """Once, also where they lead back; one to nothing is an error."""
    (tmp_path / "b").mkdir()
    for name in ("a.png", "b/b.PNG", "b/.c.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "c.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    names = [file.relative_to(tmp_path).as_posix() for file in files_in(tmp_path, (".png",))]
    assert names == ["a.png", "b/b.PNG", "b/c.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b/c\.png is no file, or a link to nothing"):
        files_in(tmp_path, (".png",))


def test_the_digest_of_files_is_that_of_their_content(tmp_path):
    """Names and places do not count; a byte anywhere, the order and the number do."""
    content = [np.random.default_rng(i).bytes(20_000) for i in range(3)]
    files = [tmp_path / f"{i}.bin" for i in range(3)]
    for file, data in zip(files, content, strict=True):
        file.write_bytes(data)
    moved = [tmp_path / "below" / f"{c}.x" for c in "cab"]
    moved[0].parent.mkdir()
    for file, data in zip(moved, content, strict=True):
        file.write_bytes(data)
    whole = content_digest(files)
    assert content_digest(moved) == whole
    assert len(whole) == 16
    others = [content_digest(files[::-1]), content_digest(files[:2])]
    for place in (0, 9_999, 19_999):
        changed = bytearray(content[1])
        changed[place] ^= 1
        files[1].write_bytes(changed)
        others.append(content_digest(files))
    assert len({whole, *others}) == 6


def test_of_much_a_digest_reads_parts(tmp_path):
    """The length, the beginning and the end of each file, and blocks between them."""
    data = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "a").write_bytes(data)
    parts = content_digest([tmp_path / "a"], read_bytes=20_000)
    assert parts == content_digest([tmp_path / "a"], read_bytes=20_000)
    digests = {parts}
    for changed in (b"x" + data[1:], data[:-1] + b"x", data[:50_000] + data[50_001:]):
        (tmp_path / "a").write_bytes(changed)
        digests.add(content_digest([tmp_path / "a"], read_bytes=20_000))
    assert len(digests) == 4
    for empty in "bc":
        (tmp_path / empty).write_bytes(b"")
    assert content_digest([tmp_path / "a", tmp_path / "b", tmp_path / "c"], read_bytes=1)
