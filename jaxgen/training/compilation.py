"""How programs are compiled, and where they are kept from one run to the next."""

import contextlib
import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from jaxgen.files import cache_directory

LIMIT_BYTES = 4 * 2**30
"""Size of the directory of compiled programs above which the oldest ones are deleted."""

_YNN = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}

_LEAST_SECONDS = 0.2  # of compilation, for a program to be worth a file


def compiler_options(device: jax.Device) -> dict[str, Any] | None:
    """What XLA is asked for beside its defaults, for `jax.jit(..., compiler_options=...)`.

    On a CPU its library YNNPACK is left out of convolutions, not of products and sums: to fewer
    than 128 features it uses one core alone, whatever the batch (measured with jax 0.10.2 on two
    cores: the U-Net of 8x8 digits takes 12.2 ms with it, 8.2 ms without). Where XLA does not know
    the option, nothing is asked for.

    Args:
        device: One of the devices that the program is for.

    Returns:
        The options, or None for XLA's defaults.
    """
    return _options(device) if device.platform == "cpu" else None


@functools.cache
def _options(device: jax.Device) -> dict[str, Any] | None:
    with jax.default_device(device):
        try:
            jax.jit(lambda: 0, compiler_options=_YNN).lower().compile()
        except jax.errors.JaxRuntimeError:  # a version that has no such option
            return None
    return _YNN


def keep_programs(directory: str | Path | None = None) -> Path | None:
    """Let JAX keep what it compiles, so that the same program is loaded the next time.

    Where JAX has such a directory already (by `JAX_COMPILATION_CACHE_DIR`, say) nothing changes.
    Programs for CPUs lie in a subdirectory by the CPU's features, since a home directory may be
    shared by machines of several kinds.

    Args:
        directory: Directory of the programs; by default `xla` in the cache directory
            (`jaxgen.files.cache_directory`).

    Returns:
        The directory in use; None where it cannot be written, and nothing is kept.
    """
    config: Any = jax.config  # its attributes are made when JAX is loaded
    if config.jax_compilation_cache_dir is not None:
        return Path(config.jax_compilation_cache_dir)
    root = (cache_directory() / "xla" if directory is None else Path(directory)).expanduser()
    path = root / _machine()
    try:
        path.mkdir(parents=True, exist_ok=True)
        _trim(root, LIMIT_BYTES)
    except OSError:
        return None
    if not os.access(path, os.W_OK):
        return None
    config.update("jax_compilation_cache_dir", str(path))
    config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def _machine() -> str:
    """A name for machines that can run each other's programs."""
    features = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        features += "".join(
            sorted({line for line in file if line.startswith(("model name", "flags"))})
        )
    return hashlib.sha256(features.encode()).hexdigest()[:12]


def _trim(root: Path, limit: int) -> None:
    """Delete the oldest programs until the rest is within the limit."""
    files = []
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # another run may delete it too
            if path.is_file():
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
