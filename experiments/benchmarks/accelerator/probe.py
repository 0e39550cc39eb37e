"""What the machine is, and the most that it computes."""

import datetime
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen.training.writers import describe_environment

from ..harness import machine, timed


def probe(shrunk: bool) -> dict[str, Any]:
    """Card, driver, versions, and the measured peaks of products and of memory.

    Args:
        shrunk: Whether to take sizes for a CPU.
    """
    size = 1024 if shrunk else 8192
    return {
        **facts(),
        "peak_flops": {
            name: _product(size, dtype)
            for name, dtype in (("bfloat16", jnp.bfloat16), ("float32", jnp.float32))
        },
        "peak_bytes": _copies(2**24 if shrunk else 2**28),
        "sum_over_devices": _reduction(),
    }


def is_cpu() -> bool:
    """Whether there is no accelerator."""
    return jax.default_backend() == "cpu"


def facts() -> dict[str, Any]:
    """The date, the card, its driver and memory, versions."""
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "driver": _driver(),
        "memory": memory.get("bytes_limit"),
        "environment": describe_environment(),
    }


def _driver() -> str | None:
    ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _product(size: int, dtype: Any) -> float:
    """FLOP/s of square products, at the default precision, one after the other."""
    x = jax.random.normal(jax.random.key(0), (size, size), dtype) / np.sqrt(size).astype(dtype)
    turns = 10
    run = jax.jit(lambda x: lax.fori_loop(0, turns, lambda _, y: y @ x, x))
    return turns * 2 * size**3 / timed(lambda: run(x))


def _copies(count: int) -> float:
    """Bytes a second, read and written, of y + 1."""
    x = jnp.zeros(count, jnp.float32)
    run = jax.jit(lambda x: x + 1)
    return 8 * count / timed(lambda: run(x))


def _reduction() -> dict[str, Any] | None:
    """A sum over all devices: whether it is right, and its time for 64 MiB a device."""
    count = jax.device_count()
    if count == 1:
        return None
    mesh = jax.make_mesh((count,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.device_put(np.arange(count, dtype=np.float32)[:, None].repeat(2**24, 1), sharding)
    run = jax.jit(lambda x: x.sum(0), out_shardings=whole)
    begin = time.perf_counter()
    right = bool((run(x) == count * (count - 1) / 2).all())
    return {
        "right": right,
        "first_call": time.perf_counter() - begin,
        "seconds": timed(lambda: run(x)),
    }
