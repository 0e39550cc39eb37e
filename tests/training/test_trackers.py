"""Where numbers go beside the tables: TensorBoard's files, and services in their offline modes."""

import importlib.util
import io
import json
import struct
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tensorboard_files import events

from jaxgen.training import trackers
from jaxgen.training.config import RunConfig, flattened, to_dict
from jaxgen.training.trackers import TensorBoardWriter, check_installed, make_writers

CONFIG = to_dict(RunConfig(run_dir="r", writers=("csv",)))
IMAGE = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)


def test_tensorboard_points_are_on_the_disk_at_once(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.log(1, {"loss": 0.5, "b": np.float64(2)})
    second = TensorBoardWriter(tmp_path)  # within the same second: its own file
    second.log(2, {"loss": 0.25})
    points = [
        (step, tag, value.simple_value) for step, tag, value in events(tmp_path / "tensorboard")
    ]
    assert sorted(points) == [(1, "b", 2.0), (1, "loss", 0.5), (2, "loss", 0.25)]
    writer.close()
    second.close()


def test_tensorboard_images(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.image(3, "samples", IMAGE)
    writer.close()
    ((step, tag, value),) = events(tmp_path / "tensorboard")
    assert (step, tag) == (3, "samples")
    stored = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert np.array_equal(np.asarray(stored), IMAGE)


def test_tensorboard_shows_the_flags_once(tmp_path):
    for _ in range(2):
        TensorBoardWriter(tmp_path, CONFIG).close()
    ((step, tag, value),) = events(tmp_path / "tensorboard")
    assert (step, tag) == (0, "config/text_summary")
    (text,) = value.tensor.string_val
    assert json.loads(text.decode()) == json.loads(json.dumps(CONFIG))
    assert all(line.startswith("    ") for line in text.decode().splitlines())


def test_names(tmp_path, monkeypatch):
    assert make_writers(("csv",), tmp_path, CONFIG) == []
    (writer,) = make_writers(("csv", "tensorboard", "tensorboard"), tmp_path, CONFIG)
    writer.close()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    check_installed(("csv", "tensorboard"))
    with pytest.raises(
        ValueError, match=r"--writers wandb needs .*: pip install 'jaxgen\[wandb\]'"
    ):
        make_writers(("tensorboard", "wandb"), tmp_path, CONFIG)


def test_flags_of_groups_are_named_by_their_path():
    assert flattened({"a": 1, "data": {"name": "x", "net": {"width": 3}}}) == {
        "a": 1,
        "data.name": "x",
        "data.net.width": 3,
    }


def use(name, run_dir):
    """A run of two calls, the second after the first was left in the middle."""
    for steps in ((1, 2), (3,)):
        time.sleep(1.1)  # wandb names what it keeps by the second
        (writer,) = make_writers((name,), run_dir, CONFIG)
        for step in steps:
            writer.log(step, {"loss": step / 2, "evaluation/odd: name": 1.0})
        writer.image(steps[-1], "samples", IMAGE)
        writer.close()
    ids = json.loads((run_dir / "writers.json").read_text())
    assert list(ids) == [name]
    return ids[name]


def wandb_records(path):
    """The records of an offline run: a log in LevelDB's format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        part = data[place + 7 : place + 7 + length]
        place += 7 + length
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield Record.FromString(whole)


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_id = use("wandb", tmp_path)
    losses, flags = [], set()
    for path in sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")):
        for record in wandb_records(path):
            flags |= {item.key for item in record.run.config.update}
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): item.value_json for item in items}
            if "loss" in row:
                losses.append((int(row["step"]), float(row["loss"])))
    assert losses == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert {"batch_size", "seed"} <= flags
    assert len(list((tmp_path / "wandb").rglob("media/images/*.png"))) == 2


def test_mlflow_in_the_run_directory(tmp_path, monkeypatch):
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason="the extra mlflow is not installed")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_id = use("mlflow", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    history = [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")]
    assert history == [(1, 0.5), (2, 1.0), (3, 1.5)]
    run = client.get_run(run_id)
    assert run.data.params["data.name"] == "digits"
    assert run.data.metrics["evaluation/odd_ name"] == 1.0
    assert run.info.status == "FINISHED"
    drawn = [item.path for item in client.list_artifacts(run_id, "samples")]
    assert drawn == ["samples/00000002.png", "samples/00000003.png"]
    assert "config.json" in [item.path for item in client.list_artifacts(run_id)]


def test_trackio_on_this_machine(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr(trackers, "PROJECT", f"jaxgen-tests-{tmp_path.name}")
    name = use("trackio", tmp_path)
    rows = SQLiteStorage.get_logs(trackers.PROJECT, name)
    counts = Counter((row["step"], row["loss"]) for row in rows if "loss" in row)
    assert counts == {(1, 0.5): 1, (2, 1.0): 1, (3, 1.5): 1}
