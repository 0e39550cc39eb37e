"""Classifier guidance: a trained diffusion or score model, led by a classifier of noisy images.

    python -m experiments.edm_digits
    python -m experiments.noisy_classifier_digits
    python -m experiments.guide runs/edm_digits runs/noisy_classifier_digits --scales 0 1 2 4

Each class gets an equal number of samples. Another classifier, trained on clean images, reads them:
for each scale the share that is read as the class that was asked for, and the Frechet distance to
the training images, as a table and in `--out` a grid, one row a scale, one column a class. The
model may be of any process (Dhariwal & Nichol 2021, algorithm 2).
Bad input ends in one line on stderr and exit code 2.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.core import Denoising, Variables
from jaxgen.data.transforms import to_uint8
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.families.noisy_classifier import class_log_prob
from jaxgen.metrics.classifier import train_classifier
from jaxgen.metrics.features import extract
from jaxgen.metrics.statistics import image_statistics
from jaxgen.noise.process import Level
from jaxgen.sampling.guidance import classifier_guided
from jaxgen.sampling.solvers import solve
from jaxgen.training.images import check_output, labelled_grid, save_png
from jaxgen.training.runs import Run, open_run

from .commands import run_command
from .comparison.quality import MOST_NEIGHBOURS, distance_name, quality
from .recipes.noisy_classifier import Config, make_network, make_parametrization

LogProb = Callable[[Array, Level, Any], Array]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: guide(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.guide",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dir", type=Path, help="directory of the trained model, which takes no condition")
    add("classifier", type=Path, help="directory of the trained classifier of noisy images")
    add(
        "--scales",
        type=float,
        nargs="+",
        default=(0.0, 1.0, 2.0, 4.0),
        help="scales of the guidance; 0 is none (%(default)s)",
    )
    add("--num-samples", type=int, default=200, help="samples of a scale (%(default)s)")
    add("--seed", type=int, default=0, help="seed of samples and of the reader (%(default)s)")
    add("--out", type=Path, help="a new .png file for a grid of samples")
    return parser


def guide(args: argparse.Namespace) -> dict[float, float]:
    """The share of samples that are read as their class, by scale; prints it.

    Args:
        args: What the command line gives.

    Raises:
        ValueError: For runs that do not go together, or numbers out of range.
        FloatingPointError: If samples are not finite.
    """
    if args.out is not None:
        check_output(args.out, accepted=(".png",))
    run, judge = open_run(args.run_dir), open_run(args.classifier)
    classes = _check(run, judge, args)
    train, held_out = run.experiment.pipeline.source, run.experiment.held_out
    reader = train_classifier(train, held_out, seed=args.seed + 1)
    against = image_statistics(reader, train, max_features=MOST_NEIGHBOURS)
    network = make_network(judge.config, judge.experiment.pipeline.source)
    predicts = make_parametrization(judge.config.noise)
    parts = run.family.denoising
    assert parts is not None

    @jax.jit
    def draw(variables: Variables, judged: Variables, key: Any, labels: Array, scale: Array):
        log_prob = class_log_prob(network, predicts, judged)
        return guided_samples(parts, variables, log_prob, key, labels, scale)

    labels = np.arange(args.num_samples, dtype=np.int32) % classes
    shares, shown = {}, []
    name = distance_name(reader)
    print(f"| scale | read as their class | {name} |\n| --- | --- | --- |")
    for scale in args.scales:
        key = jax.random.key(args.seed)
        x = draw(run.variables, judge.variables, key, labels, jnp.float32(scale))
        if not bool(jnp.isfinite(x).all()):
            raise FloatingPointError(f"samples of scale {scale:g} are not finite")
        images = np.asarray(to_uint8(x))
        logits = extract(reader, images, outputs=("logits",))["logits"]
        shares[scale] = float(np.mean(logits.argmax(axis=1) == labels))
        distance = quality(reader, images, against)[name]
        print(f"| {scale:g} | {shares[scale]:.1%} | {distance:.4g} |", flush=True)
        shown.append(images[:classes])
    if args.out is not None:
        rows = [f"scale {scale:g}" for scale in args.scales]
        names = train.class_names or tuple(map(str, range(classes)))
        save_png(args.out, labelled_grid(np.concatenate(shown), classes, rows=rows, heads=names))
        print(f"grid: {args.out}")
    return shares


def _check(run: Run, judge: Run, args: argparse.Namespace) -> int:
    """The number of classes, after all that was given is checked."""
    if run.family.denoising is None or run.family.conditioning is not None:
        raise ValueError(f"{args.run_dir} must be a run of denoised images without a condition")
    if not isinstance(judge.config, Config):
        raise ValueError(f"{args.classifier} must be a run of a classifier of noisy images")
    of, to = run.experiment.pipeline.source, judge.experiment.pipeline.source
    if of.spec["image"] != to.spec["image"] or of.num_classes != to.num_classes:
        raise ValueError(
            f"the classifier must know the model's images: {of.protocol}, and {to.protocol}"
        )
    if args.num_samples < 20:
        raise ValueError(f"--num-samples must be at least 20, got {args.num_samples}")
    if min(args.scales) < 0:
        raise ValueError(f"--scales must be at least 0, got {min(args.scales):g}")
    return to.num_classes or 0


def guided_samples(
    parts: Denoising,
    variables: Variables,
    log_prob: LogProb,
    key: Any,
    labels: Array,
    scale: Any,
) -> Array:
    """Samples of an unconditional model, each led to its class.

    Args:
        parts: What the model's samples are made by.
        variables: The model's variables.
        log_prob: Function `(x, level, label) -> log p(label | x)` of the classifier.
        key: PRNG key.
        labels: Class of each sample.
        scale: Scale of the guidance; it may be traced.
    """
    denoise = parts.denoiser(variables)
    led = classifier_guided(lambda x, level, label: denoise(x, level), log_prob, scale)
    key_start, key_steps = jax.random.split(key)
    start = parts.process.prior_std * standard_normal(key_start, (len(labels), *parts.shape))
    levels = parts.levels(parts.num_steps)
    return solve(led, levels, parts.solver, key_steps, start, condition=labels)


if __name__ == "__main__":
    sys.exit(main())
