"""`jax.jit` for programs that run only a few times: they compile in a fraction of the time."""

from functools import partial

import jax

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = partial(jax.jit, compiler_options=QUICK)
