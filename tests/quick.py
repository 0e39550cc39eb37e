"""`jax.jit` for programs that run only a few times: they compile in a fraction of the time."""

import os
import re
from functools import partial

import jax

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = partial(jax.jit, compiler_options=QUICK)


def xla_flags(num_devices):
    """XLA_FLAGS for a process that a test starts: compiled as here, with other fake devices."""
    return re.sub(r"(device_count=)\d+", rf"\g<1>{num_devices}", os.environ["XLA_FLAGS"])
