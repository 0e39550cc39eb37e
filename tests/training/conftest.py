"""Lets the tests of this folder share `toys`, `saved` and `command_line`."""

import gc
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A directory with the sound steps 100 and 200, to be copied, not changed."""
    directory = tmp_path_factory.mktemp("sound")
    from saved import write

    write(directory, 100, 200)
    return directory


@pytest.fixture
def copy(sound, tmp_path):
    yield shutil.copytree(sound, tmp_path / "checkpoints")
    gc.collect()  # Orbax's unfinished coroutines complain here, where that is ignored


@pytest.fixture
def run(capsys):
    """Runs the toy's command line; returns the exit code, stdout and stderr."""
    import command_line

    def call(*args):
        with pytest.raises(SystemExit) as stop:
            command_line.recipe.main(args)
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run that the toy's command line has trained."""
    import command_line

    directory = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as stop:
        command_line.recipe.main(["--run-dir", str(directory)])
    assert not stop.value.code
    return directory
