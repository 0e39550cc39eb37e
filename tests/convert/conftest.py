"""A run that the tests of this folder share."""

import pytest
import toy_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The directory of a toy's run."""
    directory = tmp_path_factory.mktemp("toy") / "run"
    with pytest.raises(SystemExit) as stop:
        toy_run.recipe.main(["train", "--run-dir", str(directory)])
    assert not stop.value.code
    return directory
