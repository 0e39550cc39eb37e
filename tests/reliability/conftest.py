"""A host of training processes, and what the runs of these tests must end as."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "training"))  # for `toys`

import pytest
from hosting import Host, fingerprints


@pytest.fixture(scope="session")
def host():
    with Host() as running:
        yield running


@pytest.fixture(scope="session")
def straight(host, tmp_path_factory):
    """What a run that nothing disturbs leaves behind."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    assert host.train(run_dir) == 0, host.said()
    return fingerprints(run_dir)
