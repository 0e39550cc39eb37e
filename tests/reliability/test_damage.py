"""Files of a run directory that were damaged: the right end, or one line and nothing lost."""

import hashlib
import os
import shutil

import pytest
from hosting import fingerprints
from toy import EVERY, STEPS

pytestmark = pytest.mark.slow
HALF = STEPS // 2  # where rows end too


def half(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def directory(path):
    path.unlink()
    path.mkdir()


def append(path):
    path.write_bytes(path.read_bytes() + bytes(300))


def newlines(path):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def cut(path):
    os.truncate(path, path.stat().st_size - 20)


def lose_a_row(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))


def gone(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="session")
def base(host, tmp_path_factory):
    """A run of two checkpoints."""
    run_dir = tmp_path_factory.mktemp("base") / "run"
    assert host.train(run_dir, f"--steps={HALF}") == 0, host.said()
    return run_dir


@pytest.fixture
def copy(base, tmp_path):
    return shutil.copytree(base, tmp_path / "run")


def content(step_directory):
    files = sorted(p for p in step_directory.rglob("*") if p.is_file())
    return [(str(p), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def judge(host, run_dir, straight, *, older=()):
    """Resume; the right end, or one line of refusal that leaves the older checkpoints alone."""
    before = [content(step) for step in older]
    code = host.train(run_dir, f"--steps={STEPS}")
    if code == 0:
        found = fingerprints(run_dir)
        assert {**found, "pictures": None} == {**straight, "pictures": None}
        return "went on"
    assert code in (1, 2), host.said()
    assert "Traceback" not in host.said()
    assert host.said().splitlines()[-2].startswith("error: ")
    assert [content(step) for step in older] == before
    return "refused"


@pytest.mark.parametrize("way", [half, flip, gone, empty, directory, append])
def test_every_file_of_the_newest_checkpoint(host, straight, base, tmp_path, way):
    """No damaged array is ever trained on."""
    newest = base / "checkpoints" / str(HALF)
    ends = {}
    for file in sorted(p.relative_to(base) for p in newest.rglob("*") if p.is_file()):
        copy = shutil.copytree(base, tmp_path / "run")
        way(copy / file)
        older = [copy / "checkpoints" / str(EVERY)]
        ends[str(file)] = judge(host, copy, straight, older=older)
        shutil.rmtree(copy)
    assert "went on" in ends.values()


@pytest.mark.parametrize("way", [half, cut, append, newlines, empty, directory, gone, lose_a_row])
@pytest.mark.parametrize("name", ["metrics.csv", "evaluations.csv", "config.json"])
def test_tables_and_config(host, straight, copy, name, way):
    """A table is never short of rows without a word."""
    way(copy / name)
    judge(host, copy, straight)


@pytest.mark.parametrize("way", [half, empty, directory, gone])
@pytest.mark.parametrize("name", ["sessions.jsonl", ".lock"])
def test_what_is_not_needed(host, straight, copy, name, way):
    way(copy / name)
    judge(host, copy, straight)


@pytest.mark.parametrize("name", ["samples", "tensorboard", "checkpoints"])
@pytest.mark.parametrize("is_file", [False, True])
def test_directories(host, straight, copy, name, is_file):
    """Gone, or a file in its place."""
    shutil.rmtree(copy / name)
    if is_file:
        (copy / name).write_text("x")
    end = judge(host, copy, straight) if name != "checkpoints" or is_file else None
    assert end is None or end == ("refused" if is_file else "went on")


@pytest.mark.parametrize("way", [half, cut, empty])
def test_half_a_picture_of_the_newest_step(host, straight, copy, way):
    way(copy / "samples" / f"{HALF:08d}.png")
    assert host.train(copy, f"--steps={STEPS}") == 0
    assert fingerprints(copy) == straight
