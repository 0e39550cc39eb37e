"""Metrics beside their usual implementations: features, Fréchet distance, PRDC.

    python -m experiments.benchmarks.metrics [--parts features frechet prdc] [--repeats 5]

- *features*: the networks of FID and of FD-lite0, 32x32 images resized to their size, in images/s,
  beside the same networks in PyTorch with the same random weights, in both memory layouts;
- *frechet*: statistics of 50,000 x 2,048 float32 features and their distance to a reference's,
  beside NumPy's covariance with SciPy's root (pytorch-fid) and with the eigenvalues of the product
  (torch-fidelity);
- *prdc*: 10,000 x 10,000 of 2,048 features, beside `torch.cdist` (torch-fidelity), whole matrices
  at once.

In one process, interleaved, medians. The results are compared too.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch

from jaxgen.metrics.features import extract
from jaxgen.metrics.frechet import frechet_distance, moments
from jaxgen.metrics.inception import inception_extractor
from jaxgen.metrics.lite0 import lite0_extractor
from jaxgen.metrics.prdc import prdc

from .extractor_reference import (
    TorchInception,
    TorchLite0,
    randomized,
    resize_tensorflow,
)
from .harness import interleaved, machine, print_table


def features(args: argparse.Namespace) -> None:
    """Images a second of both networks."""
    shape = (args.images, 32, 32, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def sized(size: int, mean: int) -> torch.Tensor:
        x = torch.tensor(images).permute(0, 3, 1, 2).float()
        return (resize_tensorflow(x, size) - mean) / 128

    rows = {}
    for name, net, load, size, mean in (
        ("Inception", randomized(TorchInception()), inception_extractor, 299, 128),
        ("Lite0", randomized(TorchLite0()), lite0_extractor, 224, 127),
    ):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "weights.pth"
            torch.save(net.state_dict(), path)
            extractor = load(path, allow_other_weights=True)

        @torch.inference_mode()
        def theirs(layout: Any, net: Any = net, size: int = size, mean: int = mean) -> Any:
            x = sized(size, mean).contiguous(memory_format=layout)
            return net.to(memory_format=layout)(x)["features"].numpy()

        def ours(extractor: Any = extractor) -> Any:
            return extract(extractor, images, batch_size=len(images))["features"]

        if name == "Inception":  # Lite0's resizing has no twin in PyTorch
            print(
                f"{name}: features differ by {np.abs(ours() - theirs(torch.channels_last)).max()}"
            )
        rows[f"{name}, {len(images)} images"] = interleaved(
            {
                "jaxgen": ours,
                "torch": partial(theirs, torch.contiguous_format),
                "torch NHWC": partial(theirs, torch.channels_last),
            },
            args.repeats,
            warmup=1,
        )
    print_table(rows, "torch")
    for label, times in rows.items():
        rates = ", ".join(f"{k} {len(images) / v:.1f}" for k, v in times.items())
        print(f"{label}: images/s: {rates}")


def frechet(args: argparse.Namespace) -> None:
    """Seconds from features to the distance."""
    rng = np.random.default_rng(0)
    scale = np.linspace(0.1, 1, args.dim, dtype=np.float32)
    x = np.abs(rng.standard_normal((args.count, args.dim), np.float32)) * scale
    y = np.abs(rng.standard_normal((args.count, args.dim), np.float32)) * scale[::-1]
    known = moments(y)

    def numpy_statistics() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return x.mean(0), np.cov(x, rowvar=False), known.mean, known.covariance

    def with_root() -> float:
        m, s, n, t = numpy_statistics()
        root: Any = scipy.linalg.sqrtm(s @ t)
        return np.square(m - n).sum() + np.trace(s + t) - 2 * np.trace(root.real)

    def with_eigenvalues() -> float:
        m, s, n, t = numpy_statistics()
        roots = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real
        return np.square(m - n).sum() + np.trace(s + t) - 2 * roots.sum()

    compare(
        f"Frechet distance, {args.count} x {args.dim}",
        {
            "jaxgen": lambda: frechet_distance(moments(x), known),
            "SciPy sqrtm": with_root,
            "NumPy eigvals": with_eigenvalues,
        },
        "NumPy eigvals",
        args.repeats,
    )


def precision_recall(args: argparse.Namespace) -> None:
    """Seconds from features to precision, recall, density and coverage."""
    rng = np.random.default_rng(0)
    count = args.count // 5
    mix = rng.standard_normal((32, args.dim), np.float32)
    x, y = (
        rng.standard_normal((count, 32), np.float32) * spread @ mix
        + 0.1 * rng.standard_normal((count, args.dim), np.float32)
        for spread in (1.0, 0.9)
    )
    tx, ty = torch.tensor(x), torch.tensor(y)

    @torch.inference_mode()
    def with_torch() -> tuple[float, ...]:
        def radii(a: torch.Tensor) -> torch.Tensor:
            return torch.cdist(a, a).kthvalue(6).values

        inside = (d := torch.cdist(tx, ty)) <= radii(tx)[:, None]
        recall = (d <= radii(ty)[None]).any(1).float().mean()
        density = inside.sum(0).float().mean() / 5
        precision, coverage = inside.any(0).float().mean(), inside.any(1).float().mean()
        return tuple(float(v) for v in (precision, recall, density, coverage))

    compare(
        f"PRDC, {count} x {count} x {args.dim}",
        {"jaxgen": lambda: prdc(y, x, k=5), "torch": with_torch},
        "torch",
        args.repeats,
    )


def compare(label: str, fns: dict[str, Callable[[], Any]], baseline: str, repeats: int) -> None:
    """Print each candidate's result, and how long it takes."""
    results: dict[str, Any] = {}

    def keeping(name: str, fn: Callable[[], Any]) -> Callable[[], None]:
        return lambda: results.update({name: fn()})

    times = interleaved({k: keeping(k, fn) for k, fn in fns.items()}, repeats, warmup=0)
    for name, value in results.items():
        print(f"{label}: {name} gives {value}")
    print_table({label: times}, baseline)


PARTS = {"features": features, "frechet": frechet, "prdc": precision_recall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="Parts to time."
    )
    parser.add_argument("--repeats", type=int, default=5, help="Number of timed rounds.")
    parser.add_argument("--images", type=int, default=16, help="Number of images in a batch.")
    parser.add_argument(
        "--count", type=int, default=50_000, help="Number of features; a fifth for prdc."
    )
    parser.add_argument("--dim", type=int, default=2048, help="Width of the features.")
    args = parser.parse_args()
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
