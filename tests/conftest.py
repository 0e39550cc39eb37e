"""Every test runs on eight host devices, with typed shapes and without silent rank promotion."""

import gc
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Before JAX is imported: eight fake devices, and threads enough for their collectives (two cores
# alone abort when several steps are in flight; see docs/architecture.md). What one test compiled,
# another, or a process that a test starts, need not compile again.
# Later versions of XLA end the process at a flag that they do not know.
_HAS_OLDER_EMITTERS = version("jaxlib").startswith(("0.10.", "0.11."))
CACHE = tempfile.TemporaryDirectory(prefix="jaxgen-tests-")
DEFAULTS = {
    # Unoptimized programs compile in half the time; eight fake devices make what they run short.
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true "
    + "--xla_cpu_use_fusion_emitters=false " * _HAS_OLDER_EMITTERS
    + "--xla_cpu_parallel_codegen_split_count=1",
    "NPROC": "16",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

sys.path.insert(0, str(Path(__file__).parent))  # for `quick`

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes objects by the million, hardly any of them in a cycle: a collection at every 700
# of them, Python's own choice, takes a twentieth of the time of the tests.
gc.set_threshold(20_000, 10, 10)


@pytest.fixture
def key():
    """A fixed typed PRNG key."""
    return jax.random.key(0)
