"""The command line: training, run directories, and one-line errors."""

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import command_line
import jax
import pytest

from jaxgen.files import held_alone
from jaxgen.training import cli, loop
from jaxgen.training.recipe import Recipe


def test_a_recipe_of_no_module(monkeypatch):
    """Among those loaded, of which some may be None: imports that are blocked."""
    monkeypatch.setitem(sys.modules, "blocked", None)
    with pytest.raises(ValueError, match="must be in a module by the name 'recipe'"):
        Recipe(command_line.build, command_line.Config()).name()
    assert command_line.recipe.name() == command_line.__name__


def test_train_writes_what_it_was(trained):
    saved = json.loads((trained / "config.json").read_text())
    assert saved["experiment"] == command_line.__name__
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


def test_half_a_picture_of_a_killed_run_is_deleted(run, tmp_path):
    assert run("--run-dir", str(tmp_path))[0] == 0
    left = tmp_path / "samples" / ".00000002.png.4242.tmp"
    left.parent.mkdir(exist_ok=True)
    left.write_text("")
    assert run("--run-dir", str(tmp_path))[0] == 0
    assert not left.exists()


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
    for content in ('{"experiment": ', '{"experiment": "x.y", "config": 3}', "[]"):
        (tmp_path / "broken" / "config.json").write_text(content)
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


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("JAXGEN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="--steps must be at least 1"):
        command_line.recipe.main(["--steps", "0"])


def test_arguments_default_to_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["prog", "evaluate", "--run-dir", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        command_line.recipe.main()
    assert "is no run of" in capsys.readouterr().err
