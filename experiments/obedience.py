"""Whether a trained conditional model makes what it is asked for: attributes, classes, captions.

    python -m experiments.obedience runs/edm_captioned_digits
    python -m experiments.obedience runs/edm_captioned_digits --held-out unseen --out unseen.png
    python -m experiments.obedience runs/NAME --dual-encoder runs/dual_encoder

The model is asked for the conditions of held-out examples, one sample each. What the samples show
is read by a classifier that is trained here on the real training images, all at 32 pixels at most;
of captioned digits the colours and the place by a rule, and the digit by a classifier of plain
digits. A dual encoder
(`experiments.dual_encoder`) gives R-precision of 1 in 20 and the caption score. Each number stands
beside its ceiling, real held-out images read alike, and its floor, the same samples for conditions
that others were asked for. `--out` is a grid of samples beside their captions. Bad input ends in
one line on stderr and exit code 2.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.conditioning.base import Conditioning
from jaxgen.data import captioned_digits
from jaxgen.data.images import fit_image
from jaxgen.data.sources import ArraySource, Source, decode, digits
from jaxgen.data.tokens import Tokenized, captions_of, encode
from jaxgen.data.transforms import to_model_space
from jaxgen.metrics.classifier import train_classifier
from jaxgen.metrics.features import extract
from jaxgen.metrics.obedience import (
    attribute_scores,
    caption_score,
    exclusive_groups,
    r_precision,
    shuffled,
)
from jaxgen.training.evaluation import make_sample
from jaxgen.training.images import check_output, labelled_grid, save_png
from jaxgen.training.runs import Run, open_run
from jaxgen.training.strategies import make_strategy
from jaxgen.training.writers import append_json_line

from .commands import run_command

ROWS, COLUMNS, CANDIDATES, BATCH = 10, 8, 20, 100
READ_AT = 32  # pixels: what attributes are read by is as plain there, and costs a quarter of 64


class Row(NamedTuple):
    """A score of the samples, its ceiling and its floor."""

    samples: float
    real: float
    floor: float


Scores = dict[str, Row]


class Asked(NamedTuple):
    """Held-out examples and what was made by their conditions.

    Attributes:
        source: The examples, in memory, as the model's pipeline has them.
        descriptions: What is asked for, in words.
        samples: The samples, uint8 [N, H, W, C], in their order.
        other: For each one another one, whose condition it was not asked for.
    """

    source: ArraySource
    descriptions: list[str]
    samples: np.ndarray
    other: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: measure(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.obedience",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dir", type=Path, help="directory of the trained conditional run")
    add("--num", type=int, default=500, help="samples, and held-out examples (%(default)s)")
    add("--held-out", help="split whose conditions are asked for; by default the run's")
    add("--dual-encoder", type=Path, help="directory of a trained dual encoder of such captions")
    add("--steps", type=int, default=1500, help="training steps of the classifier (%(default)s)")
    add("--seed", type=int, default=0, help="seed of samples and of the reader (%(default)s)")
    add("--out", type=Path, help="a new .png file for a grid of samples beside their captions")
    return parser


def measure(args: argparse.Namespace) -> Scores:
    """Scores by name, each with its ceiling and its floor; prints them, and keeps them in the run.

    Args:
        args: What the command line gives.

    Raises:
        ValueError: For runs that do not go together, or numbers out of range.
        FloatingPointError: If samples are not finite.
    """
    if args.num < 20 or args.steps < 1:
        raise ValueError(f"--num must be at least 20 and --steps 1, got {args.num}, {args.steps}")
    if args.out is not None:
        check_output(args.out, accepted=(".png",))
    run = open_run(args.run_dir)
    if args.held_out is not None:
        data = dataclasses.replace(run.config.data, held_out=args.held_out)
        run = open_run(args.run_dir, data=data)
    _check(run, args.run_dir)
    judge = None if args.dual_encoder is None else open_judge(args.dual_encoder, run)
    asked = ask(run, args.num, args.seed)
    drawn = run.config.data.name == "captioned_digits"
    read = read_digits if drawn else partial(read_attributes, run)
    scores = read(asked, args.steps, args.seed)
    if judge is not None:
        scores |= read_captions(judge, asked)
    if not scores:
        raise ValueError(f"{args.run_dir}: nothing can read its samples; give --dual-encoder")
    print("| what | samples | real held-out images | samples, others' conditions |")
    print("| --- | --- | --- | --- |")
    for name, (samples, real, floor) in scores.items():
        print(f"| {name} | {samples:.3f} | {real:.3f} | {floor:.3f} |")
    result = {
        "step": run.step,
        "held out": asked.source.protocol,
        "num": len(asked.samples),
        "seed": args.seed,
        "scores": {name: row._asdict() for name, row in scores.items()},
    }
    append_json_line(args.run_dir / "obedience.jsonl", result)
    if args.out is not None:
        save_png(args.out, picture(run, asked, args.seed))
        print(f"grid: {args.out}")
    return scores


def _check(run: Run, run_dir: Path) -> None:
    if run.family.conditioning is None or run.family.sample is None:
        raise ValueError(f"{run_dir} must be a run of a conditional model that samples")
    if "image" not in run.experiment.held_out.spec:
        raise ValueError(f"{run_dir} must be a run on images")


def ask(run: Run, num: int, seed: int) -> Asked:
    """Samples by the conditions of held-out examples, one each.

    Args:
        run: The conditional run.
        num: Number of samples; at most one an example.
        seed: Seed of the choice of examples and of the samples.
    """
    held_out = run.experiment.held_out
    whole = decode(held_out)
    rows = np.sort(np.random.default_rng(seed).permutation(len(whole))[:num])
    source = ArraySource(
        whole[rows],
        name=whole.name,
        split=whole.split,
        num_classes=whole.num_classes,
        class_names=whole.class_names,
        attribute_names=whole.attribute_names,
    )
    descriptions = describe(held_out, source, rows, run.family.conditioning)
    sample = make_sample(run.experiment, make_strategy("jit"))
    conditions = _conditions(run, source)
    samples = sample(run.variables, jax.random.key(seed), len(rows), conditions)
    return Asked(source, descriptions, samples, shuffled(len(rows), seed))


def describe(
    held_out: Source, chosen: ArraySource, rows: np.ndarray, conditioning: Conditioning | None
) -> list[str]:
    """What is asked for by each example's condition: its caption where there is one.

    Args:
        held_out: All examples.
        chosen: Some of them, in memory.
        rows: Which these are.
        conditioning: What the model is told.
    """
    if "text" in held_out.spec:
        captions = captions_of(held_out.source if isinstance(held_out, Tokenized) else held_out)
        return [captions[row][0] for row in rows]
    assert conditioning is not None
    values, names = chosen.arrays[conditioning.key], conditioning.names
    if conditioning.key == "attributes":
        names = names or tuple(map(str, range(values.shape[1])))
        return [", ".join(np.array(names)[value == 1]) for value in values]
    return [names[value] if names and value.ndim == 0 else str(value) for value in values]


def _conditions(run: Run, source: ArraySource) -> np.ndarray:
    """The conditions of examples, as the model is told them: of several captions the first."""
    assert run.family.conditioning is not None
    values = source.arrays[run.family.conditioning.key]
    return values[:, 0] if run.family.conditioning.key == "text" else values


def read_attributes(run: Run, asked: Asked, steps: int, seed: int) -> Scores:
    """What a classifier of the training images reads: attributes, else classes; nothing of neither.

    It sees images of at most 32 pixels a side.

    Args:
        run: The conditional run.
        asked: Examples and samples.
        steps: Number of training steps of the classifier.
        seed: Seed of the classifier.
    """
    train = decode(run.experiment.pipeline.source)
    target: Any = next((name for name in ("attributes", "label") if name in train.spec), None)
    if target is None:
        return {}
    print(f"training a classifier of real images, {steps} steps", file=sys.stderr, flush=True)
    seen = ArraySource(
        {"image": _smaller(train.arrays["image"]), target: train.arrays[target]},
        name=train.name,
        split=train.split,
        num_classes=train.num_classes,
    )
    reader = train_classifier(seen, steps=steps, seed=seed + 1, target=target)
    shown, real = (
        extract(reader, _smaller(images), outputs=("logits",))["logits"]
        for images in (asked.samples, asked.source.arrays["image"])
    )
    wanted = asked.source.arrays[target]
    others = wanted[asked.other]
    if target == "label":
        pairs = _pairs(shown, real, wanted, others)
        right = [logits.argmax(axis=1) == label for logits, label in pairs]
        return {"class": Row(*(float(each.mean()) for each in right))}
    names = train.attribute_names or tuple(map(str, range(wanted.shape[1])))
    groups = exclusive_groups(train.arrays["attributes"], names)
    three = [attribute_scores(a, b, names, groups) for a, b in _pairs(shown, real, wanted, others)]
    alone = set(range(len(names))).difference(*groups.values())
    scores = {f"one of {group}": Row(*(each.groups[group] for each in three)) for group in groups}
    for name in (names[column] for column in sorted(alone)):
        scores[f"{name}, accuracy"] = Row(*(each.accuracy[name] for each in three))
        if name in three[0].f1:
            scores[f"{name}, F1"] = Row(*(each.f1[name] for each in three))
    return {**scores, "all attributes": Row(*(each.exact for each in three))}


def _smaller(images: np.ndarray) -> np.ndarray:
    """uint8 images as the reader sees them: their longer side 32 pixels at most."""
    sides = np.array(images.shape[1:3])
    height, width = np.maximum(1, sides * READ_AT // max(READ_AT, *sides))
    if (height, width) == tuple(sides):
        return images
    return np.stack([fit_image(image, (int(height), int(width))) for image in images])


def _pairs(shown: Any, real: Any, wanted: Any, others: Any) -> tuple[tuple[Any, Any], ...]:
    return (shown, wanted), (real, wanted), (shown, others)


def read_digits(asked: Asked, steps: int, seed: int) -> Scores:
    """Colour, ground and place of captioned digits by rule, and the digit by a classifier.

    The classifier is of the plain embedded digits, and sees what a picture shows in one colour.

    Args:
        asked: Examples and samples.
        steps: Number of training steps of the classifier.
        seed: Seed of the classifier.
    """
    reader = train_classifier(digits("train"), steps=steps, seed=seed + 1)

    def read(images: np.ndarray) -> dict[str, np.ndarray]:
        drawn = captioned_digits.cut_out(images)
        logits = extract(reader, drawn, outputs=("logits",))["logits"]
        return {**captioned_digits.read(images)._asdict(), "digit": logits.argmax(axis=1)}

    source = asked.source.arrays
    wanted = captioned_digits.asked_for(source["attributes"])._asdict() | {"digit": source["label"]}
    others = {name: values[asked.other] for name, values in wanted.items()}
    rights = []
    for shown, asked_for in _pairs(read(asked.samples), read(source["image"]), wanted, others):
        right = {name: shown[name] == asked_for[name] for name in wanted}
        right["colour and ground"] = right["colour"] & right["ground"]
        right["all"] = right["colour and ground"] & right["place"] & right["digit"]
        rights.append(right)
    return {name: Row(*(float(right[name].mean()) for right in rights)) for name in rights[0]}


def open_judge(run_dir: Path, of: Run) -> Run:
    """Opens a dual encoder that can read a run's images and captions.

    Args:
        run_dir: Directory of the dual encoder's run.
        of: The run that it is to read.

    Raises:
        ValueError: A run of something else, or of other images; a run without captions.
    """
    judge = open_run(run_dir)
    if judge.family.name != "Dual encoder":
        raise ValueError(f"--dual-encoder {run_dir} must be a run of a dual encoder")
    theirs, ours = judge.experiment.held_out, of.experiment.held_out
    if theirs.spec["image"] != ours.spec["image"]:
        raise ValueError(
            f"--dual-encoder {run_dir} reads images {theirs.spec['image'][0]}, the run's are "
            f"{ours.spec['image'][0]}"
        )
    if "text" not in ours.spec:
        raise ValueError(f"--dual-encoder needs captions, and {ours.name} has none")
    return judge


def read_captions(judge: Run, asked: Asked) -> Scores:
    """R-precision and caption score by a dual encoder.

    Args:
        judge: The dual encoder's run.
        asked: Examples and samples.
    """
    source = judge.experiment.held_out
    assert isinstance(source, Tokenized)
    assert judge.family.encode is not None
    ids, _ = encode(source.tokenizer, asked.descriptions)
    shown, captions = _vectors(judge, asked.samples, ids)
    real, _ = _vectors(judge, asked.source.arrays["image"], ids)
    _, distinct = np.unique(ids, axis=0, return_inverse=True)
    distinct = distinct.reshape(-1)
    others = (captions[asked.other], distinct[asked.other])
    candidates = min(CANDIDATES, len(np.unique(distinct)))
    pairs = ((shown, captions, distinct), (real, captions, distinct), (shown, *others))
    precision = (r_precision(a, b, number, candidates=candidates) for a, b, number in pairs)
    return {
        f"R-precision, 1 in {candidates}": Row(*precision),
        "caption score": Row(*(caption_score(a, b) for a, b, _ in pairs)),
    }


def _vectors(judge: Run, images: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The dual encoder's vectors of images and of captions."""
    assert judge.family.encode is not None
    encoder = jax.jit(judge.family.encode)
    parts = []
    for begin in range(0, len(images), BATCH):
        rows = np.minimum(np.arange(begin, begin + BATCH), len(images) - 1)
        batch = {
            "image": to_model_space(jnp.asarray(images[rows])),
            "text": jnp.asarray(ids[rows]),
        }
        vectors = encoder(judge.variables, batch, jax.random.key(0))
        parts.append([np.asarray(vectors[name]) for name in ("image", "text")])
    image, text = (np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))
    return image, text


def picture(run: Run, asked: Asked, seed: int) -> np.ndarray:
    """Rows of samples, each beside what it was asked for.

    Args:
        run: The conditional run.
        asked: Examples, whose first conditions are asked for.
        seed: Seed of the samples.
    """
    rows = _conditions(run, asked.source)[:ROWS]
    sample = make_sample(run.experiment, make_strategy("jit"))
    samples = sample(run.variables, jax.random.key(seed + 1), len(rows) * COLUMNS, rows)
    return labelled_grid(samples, COLUMNS, rows=asked.descriptions[: len(rows)])


if __name__ == "__main__":
    sys.exit(main())
