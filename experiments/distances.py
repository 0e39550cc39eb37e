"""How the distances behave on real images: real against real, corrupted, and some classes only.

    python -m experiments.distances                                    the embedded digits, seconds
    python -m experiments.distances --data.name cifar10 --data.dir DIR --extractor lite0

Every row compares so many training images, unchanged or spoiled, with test images. The first row
is the floor: what two sets of real images are apart. Each series below it must move away from the
floor step by step: noise, blur, JPEG compression, and ever fewer classes. The table is printed as
Markdown with its protocol; where a series is not monotone the line says so, and the exit code is 1,
as for a distance that is not finite. Bad input ends in one line on stderr and exit code 2.
"""

import argparse
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from jaxgen.data.sources import ArraySource, Source, load_pair
from jaxgen.files import open_atomically
from jaxgen.metrics.checks import FewSamplesWarning
from jaxgen.metrics.extractors import EXTRACTORS, load_extractor
from jaxgen.metrics.report import Result, compare_images
from jaxgen.metrics.statistics import image_statistics
from jaxgen.training.images import check_output
from jaxgen.training.writers import print_anywhere

from .benchmarks.harness import machine

NOISE, BLUR, QUALITY = (0.02, 0.05, 0.1, 0.2), (0.5, 1.0, 2.0), (50, 20, 5)
Change = Callable[[np.ndarray], np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    print_anywhere()
    args = _parser().parse_args(argv)
    try:
        if args.out is not None:
            check_output(args.out, accepted=(".md",))
        results = measure(args)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, TypeError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table, wrong = describe(results)
    print(table)
    if args.out is not None:
        with open_atomically(args.out) as file:
            file.write(table.encode())
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.distances",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data.name",
        "--data",
        dest="data",
        default="digits",
        help="labelled set of images (%(default)s)",
    )
    add("--data.dir", dest="data_dir", type=Path, help="directory of that set")
    add(
        "--extractor",
        choices=EXTRACTORS,
        default="classifier",
        help="network of the features (%(default)s)",
    )
    add("--weights", type=Path, help="weights of inception or lite0, see jaxgen.metrics")
    add("--num-samples", type=int, default=2500, help="training images of a row (%(default)s)")
    add("--num-reference", type=int, default=5000, help="test images (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the noise (%(default)s)")
    add("--out", type=Path, help="a new .md file for the table")
    return parser


def measure(args: argparse.Namespace) -> dict[tuple[str, str], Result]:
    """All rows, `(series, step) -> result`; the steps of a series are in order of damage."""
    if min(args.num_samples, args.num_reference) < 10:
        raise ValueError(
            "--num-samples and --num-reference must be at least 10, got "
            f"{args.num_samples} and {args.num_reference}"
        )
    train, test = load_pair(args.data, ("train", "test"), args.data_dir)
    if train.num_classes is None or train.num_classes < 4:
        raise ValueError(f"--data.name must have at least 4 classes, {args.data} has none or fewer")
    extractor = load_extractor(
        args.extractor, weights=args.weights, train_on=args.data, data_dir=args.data_dir
    )
    rows = np.arange(min(args.num_reference, len(test)))
    protocol = f"{test.protocol}, the first {len(rows)}"
    reference = image_statistics(
        extractor, ArraySource({"image": test[rows]["image"]}, protocol=protocol)
    )
    results = {}
    for series, step, images in _sets(train, args.num_samples, args.seed):
        start = time.perf_counter()
        protocol = f"{train.protocol}: {series} {step}".strip()
        samples = ArraySource({"image": images}, protocol=protocol)
        with warnings.catch_warnings():  # they stand below the table, once
            warnings.simplefilter("ignore", FewSamplesWarning)
            results[series, step] = compare_images(samples, reference, extractor)
        print(f"{series} {step}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return results


def _sets(train: Source, num: int, seed: int) -> Iterator[tuple[str, str, np.ndarray]]:
    images = train[np.arange(min(num, len(train)))]["image"]
    yield "unchanged", "", images
    changes: list[tuple[str, str, Change]] = [
        *(("noise", f"{s:g}", partial(_noisy, scale=s, seed=seed)) for s in NOISE),
        *(("blur", f"{r:g} pixels", partial(_blurred, radius=r)) for r in BLUR),
        *(("JPEG", f"quality {q}", partial(_compressed, quality=q)) for q in QUALITY),
    ]
    for series, step, change in changes:
        yield series, step, change(images)
    labels, classes = train[np.arange(len(train))]["label"], train.num_classes or 0
    for many in (classes // 2, classes // 4, 1):
        chosen = np.flatnonzero(labels < many)[:num]
        yield "classes", f"{many} of {classes}", train[chosen]["image"]


def _noisy(images: np.ndarray, scale: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 255 * scale, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def _blurred(images: np.ndarray, radius: float) -> np.ndarray:
    return _each(images, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def _compressed(images: np.ndarray, quality: int) -> np.ndarray:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, change)


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    flat = images[..., 0] if images.shape[-1] == 1 else images
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in flat])
    return changed.reshape(images.shape)


def describe(results: dict[tuple[str, str], Result]) -> tuple[str, list[str]]:
    """The table with its protocol, and the series whose distance does not rise at every step."""
    first = next(iter(results.values()))
    names = list(first.metrics)
    distance = names[0]  # Fréchet: `compare_images` puts it first
    lines = [
        "| images | " + " | ".join(names) + " | number |",
        "|" + " --- |" * (len(names) + 2),
    ]
    series: dict[str, list[float]] = {}
    for (kind, step), result in results.items():
        values = [f"{result.metrics[name]:.4g}" for name in names]
        count = result.protocol["samples"]["count"]
        lines.append("| " + " | ".join([f"{kind} {step}".strip(), *values, str(count)]) + " |")
        floor = [first.metrics[distance]] if kind != "unchanged" else []
        series.setdefault(kind, floor).append(result.metrics[distance])
    wrong = [kind for kind, values in series.items() if not np.all(np.diff(values) > 0)]
    verdict = f"not monotone in {distance}: {', '.join(wrong)}" if wrong else "monotone"
    protocol = {
        key: value
        for key, value in first.protocol.items()
        if key in ("reference", "neighbours", "kernel distance", "seed")
    }
    lines += [
        "",
        f"- every series, from unchanged on: {verdict}",
        f"- {machine()}",
        f"- {json.dumps(protocol)}",
        *(f"- {text}" for text in first.protocol["warnings"]),
    ]
    return "\n".join(lines) + "\n", wrong


if __name__ == "__main__":
    sys.exit(main())
