"""What a run says survives kills and resumes: nothing lost, nothing doubled, nothing half."""

import csv
import io
import json
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard_files import events

from jaxgen.training import trackers, writers
from jaxgen.training.experiment import IMAGES
from jaxgen.training.images import grid
from jaxgen.training.tables import CsvWriter
from jaxgen.training.writers import (
    Writers,
    append_json_line,
    describe_environment,
    write_json,
)

# JSON


def test_json_is_strict_and_replaces(tmp_path):
    obj = {
        "a": np.float32(0.5),
        "b": [float("nan"), jnp.int32(3)],
        "c": Path("x"),
        "d": (True, None),
    }
    for _ in range(2):
        write_json(tmp_path / "run" / "x.json", obj)
    text = (tmp_path / "run" / "x.json").read_text()
    assert json.loads(text) == {"a": 0.5, "b": [None, 3], "c": "x", "d": [True, None]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "run" / "x.json", {"a": object()})
    assert (tmp_path / "run" / "x.json").read_text() == text


def test_json_lines_are_appended_after_a_half_written_one(tmp_path):
    path = tmp_path / "run" / "x.jsonl"
    append_json_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "los')
    append_json_line(path, {"n": 3, "loss": float("inf")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"n": 1},
        {"n": 3, "loss": None},
    ]


# Environment


def test_environment_names_versions_and_devices_but_no_paths():
    environment = describe_environment()
    json.dumps(environment)
    assert environment["devices"]["count"] == 8
    assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint"} <= set(environment["packages"])
    for secret in (str(Path.cwd()), str(Path.home()), str(Path(writers.__file__).parent)):
        assert secret not in json.dumps(environment)


def test_revision_of_a_tracked_file_only(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    for name in ("tracked.py", "untracked.py"):
        (tmp_path / name).write_text("1")
    assert writers._git(tmp_path / "tracked.py") is None
    git("init")
    git("add", "tracked.py")
    assert writers._git(tmp_path / "tracked.py") is None  # no commit yet
    git("commit", "-m", "first")
    assert writers._git(tmp_path / "untracked.py") is None
    (tmp_path / "untracked.py").unlink()
    found = writers._git(tmp_path / "tracked.py")
    assert len(found["revision"]) == 40
    assert not found["dirty"]
    (tmp_path / "tracked.py").write_text("2")
    assert writers._git(tmp_path / "tracked.py") == {**found, "dirty": True}


# CSV


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_rows_round_trip(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    table = CsvWriter(path)
    values = [1 / 3, np.float64(0.1), 1e-30, float("nan")]
    for step, value in enumerate(values):
        assert table.log(step, {"loss": value})
        assert len(rows(path)) == step + 1  # on the disk at once
    assert [float(row["loss"]) for row in rows(path)] == pytest.approx(values, rel=0, nan_ok=True)
    assert path.read_text().startswith("step,loss\n0,0.3333333333333333\n")


def test_csv_grows_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    table = CsvWriter(path)
    table.log(1, {"a": 1.0})
    table.log(2, {"b, with a comma": 2.0})
    table.log(3, {"a": 3.0})
    assert path.read_text() == 'step,a,"b, with a comma"\n1,1.0,\n2,,2.0\n3,3.0,\n'
    table = CsvWriter(path)
    table.log(4, {"c": 4.0})
    assert rows(path)[-1] == {"step": "4", "a": "", "b, with a comma": "", "c": "4.0"}
    assert len(rows(path)) == 4


def test_csv_of_a_killed_run_equals_that_of_an_uninterrupted_one(tmp_path):
    """Cut the file anywhere, replay from an earlier step: the same file."""

    def run(path, first):
        table = CsvWriter(path)
        for step in range(first, 12):
            table.log(step, {"loss": step / 7, **({"late": 1 / step} if step > 5 else {})})

    whole = tmp_path / "whole.csv"
    run(whole, 0)
    data = whole.read_bytes()
    for cut in range(0, len(data), 3):
        path = tmp_path / f"{cut}.csv"
        path.write_bytes(data[:cut])
        complete = data[:cut].count(b"\n") - 1
        run(path, max(0, complete - 4))
        assert path.read_bytes() == data, cut


def test_csv_steps_that_are_there_are_not_written_again(tmp_path):
    table = CsvWriter(tmp_path / "metrics.csv")
    assert table.log(10, {"loss": 1.0})
    assert not table.log(10, {"loss": 2.0})
    assert not CsvWriter(tmp_path / "metrics.csv").log(9, {"loss": 3.0})
    assert rows(tmp_path / "metrics.csv") == [{"step": "10", "loss": "1.0"}]


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "step,a\nx,1\n", "step,a\n1\n", "\n", "step,a\n1,\xff\x00\n2\n"]
)
def test_csv_leaves_other_files_alone(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"metrics\.csv is not a table"):
        CsvWriter(path)
    assert path.read_bytes() == text.encode("latin-1")


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


# All together


def images(seed):
    return np.random.default_rng(seed).integers(0, 255, (4, 8, 8, 1), np.uint8)


def run(directory, first, last):
    """Log, evaluate and sample; then stop without a close, as a killed run does."""
    out = console(False)
    both = Writers(directory, 10, console=out).__enter__()
    both.note(f"from {first}")
    for step in range(first, last):
        both.progress(step, {"loss": float(step)}, 1.0, 8.0)
        both.log(step, {"loss": float(step)})
        if step % 4 == 0:
            both.log_evaluation(step, {"bits_per_dim": step / 2})
            both.samples(step, images(step), None, IMAGES)
    return out.file.getvalue()


def test_a_resumed_run_writes_everything_once(tmp_path):
    assert "step 4: held-out bits_per_dim 2" in run(tmp_path, 1, 7)
    run(tmp_path, 3, 11)
    assert [int(row["step"]) for row in rows(tmp_path / "metrics.csv")] == list(range(1, 11))
    assert [int(row["step"]) for row in rows(tmp_path / "evaluations.csv")] == [4, 8]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "00000004.png",
        "00000008.png",
    ]
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "samples" / "00000008.png")), grid(images(8))
    )
    points = [(tag, step) for step, tag, _ in events(tmp_path / "tensorboard")]
    assert sorted(points) == sorted(
        [("loss", step) for step in range(1, 11)]
        + [(tag, step) for tag in ("evaluation/bits_per_dim", "samples") for step in (4, 8)]
    )


def test_half_a_picture_is_drawn_again(tmp_path):
    run(tmp_path, 1, 5)
    path = tmp_path / "samples" / "00000004.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert not Writers(tmp_path, 10, console=console(False)).has_samples(4)
    run(tmp_path, 4, 5)
    assert path.read_bytes() == whole


def test_what_cannot_be_closed_is_named_and_hides_no_other_error(tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    out = console(False)
    with Writers(tmp_path, 10, console=out) as both:
        monkeypatch.setattr(type(both._others[0]._file), "close", full)
        both.note("x")
        with pytest.raises(OSError, match="tensorboard"):
            both.__exit__(None, None, None)
        both.__exit__(None, KeyError("what matters"), None)
        monkeypatch.undo()


class Service:
    """A writer that keeps what it is told, and fails from a step on."""

    def __init__(self, run_dir, config):
        self.config, self.points, self.fails_at = config, [], 10**9

    def log(self, step, metrics):
        if step >= self.fails_at:
            raise ConnectionError("no route to host")
        self.points.append((step, *metrics))

    def image(self, step, name, image):
        self.points.append((step, name, image.shape))

    def close(self):
        self.points.append("closed")


def test_a_service_that_fails_is_said_and_left_out(tmp_path, monkeypatch):
    """Training goes on, the tables have everything."""
    monkeypatch.setitem(trackers.MAKERS, "wandb", Service)
    monkeypatch.setattr(trackers, "check_installed", lambda names: None)
    out = console(False)
    options = {"names": ("csv", "wandb"), "config": {"steps": 10}, "console": out}
    with Writers(tmp_path, 10, **options) as both:
        (service,) = both._others
        service.fails_at = 3
        for step in (1, 2, 3, 4):
            both.log(step, {"loss": 1.0})
        both.log_measurement(4, {"FID": 2.0})
    assert service.config == {"steps": 10}
    assert service.points == [(1, "loss"), (2, "loss")]
    said = [line for line in out.file.getvalue().splitlines() if "warning" in line]
    assert said == ["warning: Service is told no more: ConnectionError('no route to host')"]
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == ["1", "2", "3", "4"]
    assert not (tmp_path / "tensorboard").exists()


def test_a_service_is_told_each_row_once(tmp_path, monkeypatch):
    """Also by a run that goes back to its checkpoint, and of what was measured."""
    monkeypatch.setitem(trackers.MAKERS, "wandb", Service)
    monkeypatch.setattr(trackers, "check_installed", lambda names: None)
    services = []
    for first in (1, 2):
        with Writers(tmp_path, 10, names=("wandb",), console=console(False)) as both:
            both.resume(first, {})
            for step in range(first, 4):
                both.log(step, {"loss": float(step)})
            both.log_evaluation(3, {"loss": 1.0})
            both.log_measurement(3, {"FID": 1.0})
            both.samples(3, images(0), None, IMAGES)
            services += both._others
    assert [point for service in services for point in service.points] == [
        (1, "loss"),
        (2, "loss"),
        (3, "loss"),
        (3, "evaluation/loss"),
        (3, "measure/FID"),
        (3, "samples", grid(images(0)).shape),
        "closed",
        "closed",  # by the second call, which was told nothing: all was there
    ]


def test_disabled_writers_touch_nothing(tmp_path):
    with Writers(tmp_path / "run", 10, enabled=False) as nothing:
        nothing.note("x")
        nothing.progress(1, {}, 1.0, 1.0)
        nothing.log(1, {"loss": 1.0})
        nothing.log_evaluation(1, {"loss": 1.0})
        nothing.samples(1, images(0), None, IMAGES)
    assert not (tmp_path / "run").exists()
