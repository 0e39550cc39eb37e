"""Lets the tests of this folder share `toys` and `saved`."""

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
