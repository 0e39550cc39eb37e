"""Every test runs on eight host devices, with typed shapes and without silent rank promotion."""

import os

# Before JAX is imported: eight fake devices, and threads enough for their collectives (two cores
# alone abort when several steps are in flight; see docs/architecture.md).
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    """A fixed typed PRNG key."""
    return jax.random.key(0)
