"""The command line: verbs, flags, run directories, and one-line errors."""

import importlib.util
import io
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from PIL import Image

from jaxgen.data.sources import digits
from jaxgen.files import held_alone
from jaxgen.training import cli, loop
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.recipe import Recipe
from jaxgen.training.runs import open_run


@dataclass(frozen=True)
class Config(RunConfig):
    """A toy's flags."""

    steps: int = operational(4)
    batch_size: int = 16
    log_every: int = operational(2)
    sample_every: int = operational(4)
    width: int = 3
    """Some width."""


def build(config):
    return toys.experiment(config)._replace(protocol={"data": "digits, test"})


recipe = Recipe(build, Config())


@pytest.fixture
def run(capsys):
    """Runs the command line; returns the exit code, stdout and stderr."""

    def call(*args):
        with pytest.raises(SystemExit) as stop:
            recipe.main(args)
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as stop:
        recipe.main(["--run-dir", str(directory)])
    assert not stop.value.code
    return directory


def test_a_recipe_of_no_module(monkeypatch):
    """Among those loaded, of which some may be None: imports that are blocked."""
    monkeypatch.setitem(sys.modules, "blocked", None)
    with pytest.raises(ValueError, match="must be in a module by the name 'recipe'"):
        Recipe(build, Config()).name()
    assert recipe.name() == __name__


def test_train_writes_what_it_was(trained):
    saved = json.loads((trained / "config.json").read_text())
    assert saved["experiment"] == __name__
    assert saved["config"]["steps"] == 4
    session = json.loads((trained / "sessions.jsonl").read_text().splitlines()[0])
    assert session["packages"]["jax"] == jax.__version__
    assert "git" in session
    assert (trained / "samples" / "00000004.png").exists()


def test_bare_run_resumes_and_prints_the_grid(run, trained):
    code, out, _ = run("--run-dir", str(trained))
    assert code == 0
    assert "resuming" in out
    assert f"samples: {trained / 'samples' / '00000004.png'}" in out
    code, out, _ = run("train", "--run-dir", str(trained), "--steps", "6")
    assert code == 0
    assert "6 of 6 steps done" in out


def test_another_config_is_refused(run, trained):
    before = (trained / "config.json").read_text()
    code, _, err = run("--run-dir", str(trained), "--width", "5", "--seed", "9")
    assert code == 2
    assert "was made by another config:\n  --seed: 0 -> 9\n  --width: 3 -> 5" in err
    assert (trained / "config.json").read_text() == before


def test_what_is_drawn_or_measured_is_what_was_trained(run, trained, tmp_path):
    """No verb takes a flag that makes another model; the seed of the draws is free."""
    out = tmp_path / "x.npz"
    for verb in (["evaluate"], ["sample", "--num", "2", "--out", str(out)]):
        code, _, err = run(*verb, "--run-dir", str(trained), "--width", "5")
        assert code == 2
        assert "was made by another config:\n  --width: 3 -> 5" in err
    assert not out.exists()
    assert run("sample", "--num", "2", "--out", str(out), "--run-dir", str(trained))[0] == 0
    again = ("sample", "--num", "2", "--out", str(tmp_path / "y.npz"), "--seed", "1")
    assert run(*again, "--run-dir", str(trained))[0] == 0
    drawn = [np.load(tmp_path / name)["samples"] for name in ("x.npz", "y.npz")]
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize("name", ["a[1]", "what?", "star*", "back\\slash", "gs:", "logs:/x"])
@pytest.mark.parametrize("verb", [[], ["evaluate"]])
def test_names_under_which_checkpoints_cannot_be_read(run, tmp_path, name, verb):
    code, _, err = run(*verb, "--run-dir", str(tmp_path / name))
    assert code == 2
    assert "could not be read again: its path must be without" in err
    assert not list(tmp_path.iterdir())


def test_a_run_killed_while_its_config_was_written_begins_again(run, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.4242.tmp").write_text("{")
    assert run("--run-dir", str(tmp_path))[0] == 0
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_the_config_is_read_again_under_the_lock(run, tmp_path, monkeypatch):
    """Another command has begun and ended between our look and our turn: its config stays."""
    directory = str(tmp_path / "r")

    @contextmanager
    def held_late(path):
        monkeypatch.setattr(cli, "held_alone", held_alone)
        assert run("--run-dir", directory, "--steps", "2")[0] == 0
        with held_alone(path):
            yield

    monkeypatch.setattr(cli, "held_alone", held_late)
    code, _, err = run("--run-dir", directory, "--width", "5")
    assert code == 2
    assert "--width: 3 -> 5" in err
    saved = json.loads((tmp_path / "r" / "config.json").read_text())["config"]
    assert (saved["width"], saved["steps"]) == (3, 2)
    assert len((tmp_path / "r" / "sessions.jsonl").read_text().splitlines()) == 1


def test_the_run_directory_keeps_its_config(run, tmp_path):
    """Flags of the first call need not be repeated."""
    directory = str(tmp_path / "r")
    assert run("--run-dir", directory, "--width", "7")[0] == 0
    assert run("--run-dir", directory)[0] == 0
    assert json.loads((tmp_path / "r" / "config.json").read_text())["config"]["width"] == 7


def test_output_that_nobody_reads():
    """`--help | head` ends without a word of complaint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.vae_digits", "--help"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_sample(run, trained, tmp_path):
    grid, samples = tmp_path / "grid.png", tmp_path / "samples.npz"
    code, out, _ = run("sample", "--run-dir", str(trained), "--num", "9", "--out", str(grid))
    assert code == 0
    assert f"samples: {grid}" in out
    assert Image.open(grid).size[0] > 24
    assert run("sample", "--run-dir", str(trained), "--num", "300", "--out", str(samples))[0] == 0
    with np.load(samples) as data:
        images = data["samples"]
    assert images.shape == (300, 8, 8, 1)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(300, -1), axis=0)) == 300
    code, _, err = run("sample", "--run-dir", str(trained), "--out", str(grid))
    assert code == 2
    assert "exists and is not overwritten" in err


def test_a_result_that_is_not_finite_is_null_and_a_failure(run, trained, monkeypatch):
    """Valid JSON, the metric's name, exit code 1."""
    nan = float("nan")
    metrics = {"loss": nan, "error": 0.5, "standard_error": nan}
    monkeypatch.setattr(cli.evaluation, "make_evaluate", lambda *_: lambda _: metrics)
    code, out, err = run("evaluate", "--json", "--run-dir", str(trained))
    assert code == 1
    assert "not finite, so no number in the result: loss, standard_error" in err
    result = json.loads(out.strip().splitlines()[-1])
    assert (result["loss"], result["error"]) == (None, 0.5)


def test_the_best_checkpoint_by_its_name(run, tmp_path):
    """It is that of the smallest held-out loss here, and not the newest."""
    directory = ("--run-dir", str(tmp_path / "r"))
    code, _, err = run("--evaluate-every", "2", "--checkpoint-every", "2", *directory)
    assert code == 0, err
    best = json.loads((tmp_path / "r" / "best.json").read_text())
    assert (best["step"], best["metric"]) == (4, "loss")
    (tmp_path / "r" / "best.json").write_text(json.dumps({**best, "step": 2}))
    code, out, _ = run("evaluate", "--step", "best", "--json", *directory)
    assert (code, json.loads(out)["step"]) == (0, 2)
    assert open_run(tmp_path / "r", step="best").step == 2
    (tmp_path / "r" / "best.json").unlink()
    code, _, err = run("sample", "--step", "best", "--out", str(tmp_path / "x.png"), *directory)
    assert code == 2
    assert "has no best checkpoint: --measure-every or --evaluate-every finds it" in err
    code, out, err = run("sample", "--step", "worst", *directory)
    assert code == 2
    assert "--step" in out + err


def test_samples_that_are_not_finite_are_a_failure(run, trained, tmp_path, monkeypatch):
    """One line, exit code 1, no file."""
    lost = lambda *args, condition=None: jnp.full((8, 8, 8, 1), jnp.nan)  # noqa: E731
    family = toys.mean_image()._replace(sample=lost)
    monkeypatch.setattr(toys, "mean_image", lambda poison: family)
    out = tmp_path / "x.png"
    code, _, err = run("sample", "--num", "5", "--out", str(out), "--run-dir", str(trained))
    assert code == 1
    assert err.startswith("error: 5 of 5 samples are not finite")
    assert not out.exists()


def test_evaluate_prints_a_table_for_people(run, trained):
    code, out, _ = run("evaluate", "--run-dir", str(trained))
    assert code == 0
    result = json.loads((trained / "evaluations.jsonl").read_text().splitlines()[-1])
    assert f"step {result['step']}, average 'ema'; digits, test" in out
    assert "bits per dimension" in out
    assert "-log p(x)" in out
    assert "{" not in out


def test_evaluate_prints_and_keeps_one_json_line(run, trained):
    code, out, _ = run("evaluate", "--json", "--run-dir", str(trained))
    assert code == 0
    result = json.loads(out.strip().splitlines()[-1])
    assert result["loss"] > 0
    assert result["likelihood"] == {
        "nats": result["loss"],
        "standard_error": result["standard_error"],
        "bits_per_dim": pytest.approx(result["loss"] / (64 * np.log(2))),
        "num_examples": 297,
        "bound": "ELBO",
        "dequantization": "none",
        "given": None,
        "data": digits("test").protocol,
    }
    assert result["protocol"]["data"] == "digits, test"
    assert result["protocol"]["environment"]["devices"]["count"] == 8
    lines = (trained / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == result


def test_a_result_that_cannot_be_kept_is_printed(run, trained, monkeypatch):
    def full(path, obj):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cli, "append_json_line", full)
    code, out, err = run("evaluate", "--json", "--run-dir", str(trained))
    assert code == 0
    assert json.loads(out.strip().splitlines()[-1])["loss"] > 0
    assert err.startswith("warning: the result is printed but not kept: [Errno 28]")
    assert "evaluations.jsonl" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_says_so_by_its_code(run, tmp_path, monkeypatch, number):
    """128 and the signal while steps are left; 0 where it came after the last one."""
    plain = loop.train

    def stopped(experiment, config, stop):
        signal.raise_signal(number)
        return plain(experiment, config, stop=stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", stopped)
        code, out, _ = run("--run-dir", str(tmp_path / "r"))
        assert code == 128 + number
        assert "stopped at step 0, nothing is trained yet" in out
        assert "saved" not in out
        assert run("--run-dir", str(tmp_path / "r"))[0] == 128 + number
    assert run("--run-dir", str(tmp_path / "r"))[0] == 0


def test_a_second_interrupt_ends_at_once_in_one_line(run, tmp_path, monkeypatch):
    def interrupted(experiment, config, stop):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "train", interrupted)
    monkeypatch.setattr(cli, "_leave", sys.exit)
    before = signal.getsignal(signal.SIGINT)
    try:
        code, _, err = run("--run-dir", str(tmp_path / "r"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert err == "error: interrupted\n"


def test_a_full_disk_is_one_line_with_its_path(run, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("--run-dir", str(tmp_path / "r"))
    assert code == 2
    assert err.splitlines()[0].startswith("error: [Errno 28] No space left on device: ")
    assert "config.json" in err.splitlines()[0]


def test_no_tracebacks_of_libraries_before_the_one_line(run, tmp_path, monkeypatch):
    """Orbax logs those of a save that failed; the error says it."""
    orbax = logging.getLogger("absl")
    monkeypatch.setattr(orbax, "level", logging.INFO)
    orbax.setLevel(logging.INFO)  # and forgets what it held for enabled
    assert run("sample", "--run-dir", str(tmp_path / "none"))[0] == 2
    assert not orbax.isEnabledFor(logging.ERROR)


def test_samples_one_by_one(run, trained, tmp_path):
    """A directory gets a file for each; it is never mixed with what is there."""
    out = tmp_path / "new" / "samples"
    assert run("sample", "--num", "3", "--out", str(out), "--run-dir", str(trained))[0] == 0
    assert sorted(p.name for p in out.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert Image.open(out / "00002.png").size == (8, 8)
    code, _, err = run("sample", "--num", "3", "--out", str(out), "--run-dir", str(trained))
    assert code == 2
    assert "is not empty" in err


def test_a_terminal_without_unicode(trained, tmp_path, monkeypatch):
    """The path is printed in its encoding."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as stop:
        recipe.main(
            ["sample", "--num=1", f"--out={tmp_path / 'Bücher.png'}", f"--run-dir={trained}"]
        )
    assert not stop.value.code
    out.seek(0)
    assert r"B\xfccher.png" in out.read()


def test_what_cannot_be_drawn_is_left_out_and_said(run, tmp_path, monkeypatch):
    """Training goes on; who asks for the picture is told why there is none."""

    def without(config):
        made = build(config)
        family = made.family._replace(sample=None)
        return made._replace(family=family, left_out={"attribute": "there is no class 3"})

    monkeypatch.setattr(sys.modules[__name__], "recipe", Recipe(without, Config()))
    code, out, _ = run("--run-dir", str(tmp_path / "r"), "--steps", "4")
    assert code == 0
    assert "the picture 'attribute' is left out: there is no class 3" in out
    assert "training shows no samples: the family cannot draw 'reconstructions'" in out
    asked = ("sample", "--picture", "attribute", "--out", str(tmp_path / "x.png"))
    code, _, err = run(*asked, "--run-dir", str(tmp_path / "r"))
    assert code == 2
    assert "--picture attribute cannot be drawn: there is no class 3" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--batch-size", "12"], "--batch-size must be a multiple of 8"),
        (["--strategy", "pmap", "--fsdp", "2"], "fsdp needs strategy 'jit'"),
        (["--stepz", "3"], "--steps"),  # the near flag is suggested
        (["--data.nmae", "x"], "--data.name"),
        (["--strategy", "tpu"], "invalid choice"),
        (["--measure-every", "2"], "--measure-every needs distances, and this recipe names none"),
        (["--writers", "trackio"], "pip install 'jaxgen[trackio]'"),
        (["--profile", "4", "2"], "--profile must be two steps, START before STOP, got 4 2"),
        (["sample", "--out", "grid.jpg"], "is no run of"),
        (["sample", "--step", "3"], "is no run of"),
        (["evaluate"], "is no run of"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, monkeypatch, args, message):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trackio" else find(name)
    )
    code, out, err = run(*args, "--run-dir", str(tmp_path / "new"))
    assert code == 2
    assert message in out + err
    assert "Traceback" not in out + err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sample", "--out", "grid.jpg"], "must end in"),
        (["sample", "--num", "0", "--out", "new.png"], "--num must be at least 1, got 0"),
        (["sample", "--step", "99", "--out", "new.png"], "no checkpoint of step 99"),
    ],
)
def test_bad_sampling(run, trained, args, message):
    code, _, err = run(*args, "--run-dir", str(trained))
    assert code == 2
    assert message in err


def test_directories_that_are_something_else(run, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    code, _, err = run("--run-dir", str(tmp_path / "other"))
    assert code == 2
    assert "is no run directory" in err
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    assert "is a file" in run("--run-dir", str(tmp_path / "file"))[2]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"experiment": ')
    assert "cannot be read as a run's config" in run("--run-dir", str(tmp_path / "broken"))[2]
    (tmp_path / "broken" / "config.json").write_text('{"experiment": "x.y", "config": {}}')
    assert "is a run of x.y" in run("--run-dir", str(tmp_path / "broken"))[2]


def test_two_trainings_in_one_directory_are_refused(run, tmp_path):
    """A lock left behind does no harm; a lock that is held does."""
    directory = tmp_path / "r"
    directory.mkdir()
    with held_alone(directory):
        code, _, err = run("--run-dir", str(directory))
        assert code == 2
        assert "another process is training in it" in err
        assert not (directory / "config.json").exists()
    assert run("--run-dir", str(directory))[0] == 0


def test_help_documents_the_flags(run):
    code, out, _ = run("--help")
    assert code == 0
    for text in ("--width", "Some width.", "--data.dir", "Verbs: train, sample, evaluate"):
        assert text in out


def test_help_of_a_run_is_of_its_verb(run, trained):
    """With the names of its pictures; what fixes the model is in the whole help alone."""
    code, out, _ = run("sample", "--run-dir", str(trained), "--help")
    assert code == 0
    assert "--width" not in out
    for text in ("--num", "Pictures (--picture): samples", "--help-all"):
        assert text in out
    code, out, _ = run("sample", "--help-all", "--run-dir", str(trained))
    assert code == 0
    assert "--width" in out
    assert run("evaluate", "--run-dir=nowhere", "--nothing-like-this", "--help")[0] == 0


def test_samples_are_numbered_in_their_run(run, trained):
    """The grid has a title; what is drawn twice is kept twice."""
    drawn = [
        run("sample", "--num", "4", "--run-dir", str(trained))[1].split(": ")[1].strip()
        for _ in range(2)
    ]
    assert drawn == [str(trained / "drawn" / f"samples_00{n}.png") for n in (1, 2)]
    sizes = {Image.open(path).size for path in drawn}
    assert sizes == {(2 * 66 + 2, 20 + 2 * 66 + 2)}


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("JAXGEN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="--steps must be at least 1"):
        recipe.main(["--steps", "0"])


def test_arguments_default_to_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["prog", "evaluate", "--run-dir", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        recipe.main()
    assert "is no run of" in capsys.readouterr().err
