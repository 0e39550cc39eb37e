"""Training and sampling beside PyTorch, in the same process, interleaved."""

import importlib
import importlib.util
from dataclasses import replace
from typing import Any

import jax

PEERS = ("ddpm", "sngan", "dcgan", "vae", "wavenet", "pixelcnn")


def beside_torch(name: str, precision: str, shrunk: bool) -> dict[str, Any]:
    """One of the benchmarks beside PyTorch, at the paper's size on an accelerator.

    On NVIDIA cards the peer is compiled, its images are channels last; elsewhere it runs on the
    CPU as it comes.

    Args:
        name: Name of the benchmark, one of `PEERS`.
        precision: Precision of both sides.
        shrunk: Whether to take the sizes for a CPU.
    """
    missing = [m for m in ("torch", "diffusers") if importlib.util.find_spec(m) is None]
    if missing:
        return {"skipped": f"{' and '.join(missing)} not installed"}
    from ..torch_peer import TorchSetup

    on_card = jax.default_backend() == "gpu"
    if on_card:
        import torch

        if not torch.cuda.is_available():
            return {"skipped": "this PyTorch has no CUDA"}
        torch.set_float32_matmul_precision("high")  # TensorFloat-32, which is JAX's default there
    elif jax.default_backend() != "cpu":
        return {"skipped": f"PyTorch has no {jax.default_backend()} here"}
    setup = TorchSetup("cuda" if on_card else "cpu", precision, compiled=on_card)
    return {"setup": str(setup), **_measure(name, setup, shrunk)}


def _measure(name: str, setup: Any, shrunk: bool) -> dict[str, Any]:
    module = "gan" if name in ("sngan", "dcgan") else name
    benchmark = importlib.import_module(f"experiments.benchmarks.{module}")
    if module == "gan":
        size = (benchmark.SIZES if shrunk else benchmark.PAPER)[name]
        return benchmark.measure(name, size, setup)
    if name == "ddpm":
        kind = "tiny" if shrunk else "paper"
        size = benchmark.SIZES[kind]
        size = size if shrunk else replace(size, batch=128, samples=64)
        return benchmark.measure(size, kind, setup)
    if name == "vae":
        return benchmark.measure("dense", setup)
    if name == "wavenet":
        return benchmark.measure("small" if shrunk else "paper", setup)
    size = benchmark.Size(16, 1, 12, 4) if shrunk else benchmark.PAPER
    return benchmark.measure(size, setup)
