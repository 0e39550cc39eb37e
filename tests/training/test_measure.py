"""Quality while training: when samples are measured, which checkpoint is the best, what is kept."""

import csv
import json
import signal
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import experiment

from jaxgen.conditioning.labels import labels
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource, digits
from jaxgen.training import loop, states
from jaxgen.training.best import best_step
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import VECTORS, Distances
from jaxgen.training.measure import check_measurable, conditions_like
from jaxgen.training.strategies import make_strategy

NAMES = ("FD-toy", "precision-toy")


def config(run_dir, **changes):
    flags = {
        "steps": 40,
        "batch_size": 32,
        "seed": 5,
        "log_every": 10,
        "sample_every": 0,
        "checkpoint_every": 25,
        "keep": 1,
        "measure_every": 10,
        "measure_num": 8,
        **changes,
    }
    return RunConfig(run_dir=str(run_dir), **flags)


def toy(flags, of=None, protocol=None):
    """An experiment whose samples are measured by a function of them."""

    def distances(train, held_out, given):
        assert given is flags
        real = np.asarray(train.arrays["image"]).mean()
        plain = lambda images: (abs(float(images.mean()) - real), 0.5)  # noqa: E731
        return Distances(
            NAMES,
            lambda images: dict(zip(NAMES, (of or plain)(images), strict=True)),
            protocol or {"extractor": "toy"},
        )

    return experiment(flags)._replace(distances=distances)


def train(flags, of=None, **changes):
    return loop.train(toy(flags, of)._replace(**changes), flags, jax.devices()[:1])


def rows(run_dir):
    with (run_dir / "measurements.csv").open() as file:
        return list(csv.DictReader(file))


def kept(run_dir):
    return sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir())


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The state of a run that measures nothing."""
    return train(config(tmp_path_factory.mktemp("plain"), measure_every=0))


def falling_then_rising():
    values = iter([3.0, 1.0, 2.0, 4.0])
    return lambda images: (next(values), 0.5)


def test_rows_and_the_best_checkpoint(plain, tmp_path, capsys):
    """It outlives the rotation, whose one place the last checkpoint takes."""
    flags = config(tmp_path)
    assert_equal(train(flags, falling_then_rising()), plain)  # what is measured changes nothing
    table = rows(tmp_path)
    assert [row["step"] for row in table] == ["10", "20", "30", "40"]
    assert [float(row["FD-toy"]) for row in table] == [3, 1, 2, 4]
    assert kept(tmp_path) == [20, 40]
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "step": 20,
        "metric": "FD-toy",
        "value": 1.0,
        "table": "measurements.csv",
    }
    protocol = json.loads((tmp_path / "measurements.json").read_text())
    assert protocol == {"extractor": "toy", "samples": 8, "seed": 5}
    assert "step 20: samples FD-toy 1, precision-toy 0.5" in capsys.readouterr().out
    one = make_strategy("jit", jax.devices()[:1])
    assert int(states.restore(toy(flags), flags, one, step="best").step) == 20
    # The next call knows it too, and needs no measuring for that.
    train(config(tmp_path, steps=60, measure_every=0))
    assert kept(tmp_path) == [20, 60]
    assert best_step(tmp_path) == 20


def test_samples_are_those_of_the_seed(tmp_path):
    """The same noise each time, drawn as `sample` draws: `num` images at rest."""
    seen = []
    train(config(tmp_path, steps=20), lambda images: (float(len(seen)), seen.append(images) or 0.0))
    assert [(x.shape, x.dtype) for x in seen] == [((8, 8, 8, 1), np.uint8)] * 2
    apart = np.abs(seen[0].astype(int) - seen[1]).mean()
    assert 0 < apart < 20  # the model moved, the noise did not


def test_a_signal_leaves_it_to_the_next_call(plain, tmp_path):
    """What was trained is saved; training is not told apart."""
    flags = config(tmp_path)

    def sample(variables, key, num, *, condition=None):
        signal.raise_signal(signal.SIGTERM)  # while it is traced, in the thread that is left behind
        ended.wait(60)
        return jnp.zeros((num, 8, 8, 1))

    ended = threading.Event()
    state = train(flags, family=toy(flags).family._replace(sample=sample))
    ended.set()
    assert int(state.step) == 10
    assert not (tmp_path / "measurements.csv").exists()
    assert kept(tmp_path) == [10]
    assert_equal(train(flags), plain)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20", "30", "40"]


def test_an_error_loses_no_step(plain, tmp_path):
    def of(images):
        raise MemoryError("too many pixels")

    with pytest.raises(MemoryError, match="too many pixels"):
        train(config(tmp_path), of)
    assert kept(tmp_path) == [10]
    assert_equal(train(config(tmp_path)), plain)


def test_samples_that_are_not_finite_are_a_row_and_never_the_best(plain, tmp_path, capsys):
    flags = config(tmp_path, steps=20)
    lost = lambda variables, key, num, condition=None: jnp.full((num, 8, 8, 1), jnp.nan)  # noqa: E731
    train(flags, family=toy(flags).family._replace(sample=lost))
    assert "step 10: warning: nothing is measured: 8 of 8 samples are" in capsys.readouterr().out
    assert [row["FD-toy"] for row in rows(tmp_path)] == ["nan", "nan"]
    with pytest.raises(FileNotFoundError, match="has no best checkpoint: --measure-every or"):
        best_step(tmp_path)
    train(config(tmp_path))
    assert best_step(tmp_path) in (30, 40)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20", "30", "40"]


def test_the_best_is_by_the_held_out_loss_where_nothing_is_measured(tmp_path):
    train(config(tmp_path, measure_every=0, evaluate_every=20))
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["metric"], best["table"]) == ("loss", "evaluations.csv")
    assert best["step"] == best_step(tmp_path) == 40


def test_numbers_of_two_protocols_are_not_mixed(tmp_path):
    flags = config(tmp_path, steps=10)
    train(flags)
    more = config(tmp_path, steps=20, measure_num=9)
    with pytest.raises(ValueError, match=r"was measured otherwise:\n  samples: 8 -> 9\n"):
        train(more)
    (tmp_path / "measurements.csv").unlink()
    train(more)
    assert json.loads((tmp_path / "measurements.json").read_text())["samples"] == 9
    for content in ("{", "3"):
        (tmp_path / "measurements.json").write_text(content)
        with pytest.raises(ValueError, match=r"measurements\.json, which says what .* of, cannot"):
            train(config(tmp_path, steps=30, measure_num=9))


def test_what_cannot_be_measured_is_said_before_training(tmp_path):
    flags = config(tmp_path / "r")
    whole = toy(flags)
    conditional = whole.family._replace(conditioning=labels(10)._replace(key="kind"))
    for changes, message in (
        ({"medium": VECTORS}, "is for models of images, and this is one of vectors"),
        ({"family": whole.family._replace(sample=None)}, "this model has no prior to draw from"),
        ({"distances": None}, "needs distances, and this recipe names none"),
        ({"family": conditional}, "digits has no entry 'kind'"),
    ):
        with pytest.raises(ValueError, match=message):
            loop.train(whole._replace(**changes), flags, jax.devices()[:1])
        check_measurable(whole._replace(**changes), config(tmp_path, measure_every=0))
    assert not (tmp_path / "r").exists()
    for name in ("measure_every", "measure_num"):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be at least"):
            config(tmp_path, **{name: -1})


def test_a_record_of_the_best_that_cannot_be_read(tmp_path):
    (tmp_path / "best.json").write_text("{}")
    with pytest.raises(ValueError, match=r"best\.json cannot be read: KeyError"):
        best_step(tmp_path)


def test_conditions_are_those_of_training_examples():
    made = experiment(SimpleNamespace(batch_size=16, seed=0))
    assert conditions_like(made, 5) is None
    told = made._replace(family=made.family._replace(conditioning=labels(10)))
    expected = np.asarray(digits("train").arrays["label"])[np.arange(7) * 1500 // 7]
    np.testing.assert_array_equal(conditions_like(told, 7), expected)
    captions = np.arange(24, dtype=np.int32).reshape(4, 2, 3)  # two of three tokens each
    source = ArraySource({"text": captions, "image": np.zeros((4, 8, 8, 1), np.uint8)})
    conditioning = labels(10)._replace(key="text", shape=(3,))
    told = made._replace(
        family=made.family._replace(conditioning=conditioning),
        pipeline=Pipeline(source, 2, seed=0),
    )
    np.testing.assert_array_equal(conditions_like(told, 2), captions[[0, 2], 0])
