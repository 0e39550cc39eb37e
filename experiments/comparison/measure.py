"""What the comparison measures of one run: every number, and the pictures."""

import csv
import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.conditioning.base import condition_of, key_of
from jaxgen.core import Bound, Family, Variables
from jaxgen.data.pipeline import eval_batches
from jaxgen.data.sources import ArraySource
from jaxgen.families.classify import class_log_likelihoods, posterior
from jaxgen.metrics.classification import ClassificationReport, classification_report
from jaxgen.metrics.features import extract
from jaxgen.metrics.neighbours import beside_neighbours, nearest_images
from jaxgen.metrics.statistics import image_statistics
from jaxgen.training import evaluation
from jaxgen.training.likelihood import likelihood
from jaxgen.training.runs import Run, find_recipe, open_run
from jaxgen.training.strategies import make_strategy

from ..benchmarks.harness import interleaved
from .families import flags
from .quality import (
    MOST_NEIGHBOURS,
    Reference,
    Results,
    nearest,
    quality,
)

VERSION = 5  # of what is measured; raised with any change of it, so that nothing old is shown
BATCH = 64  # images of the timed batch
REPEATS = 5
QUICK = 0.05  # seconds: what takes less is timed ten times as often
AT_ONCE = 256
SHOWN = 40
NEIGHBOURS = 8
STRIP = (2, 8)
STRIPS = {
    "reconstructions": "held-out images above their reconstructions",
    "completions": "held-out image, its upper half, and completions of that half",
    "between_examples": "from one held-out image's latent to another's",
    "interpolation": "from one random latent to another",
}
Pictures = dict[str, np.ndarray]


def measure_real(reference: Reference) -> tuple[Results, Pictures]:
    """The floor: what held-out images, and a random part of the training images, would get."""
    train, held_out, count = reference.train, reference.held_out, reference.num_samples
    order = np.random.default_rng(reference.seed).permutation(len(train))
    size = min(count, len(train) // 2)
    held = held_out[np.arange(min(count, len(held_out)))]["image"]
    some, others = (train[np.sort(rows)]["image"] for rows in (order[:size], order[size:]))
    rest = image_statistics(reference.extractor, others, max_features=MOST_NEIGHBOURS)
    real = {
        "held_out": {
            **quality(reference.extractor, held, reference.statistics),
            **nearest(held, train),
        },
        "train_part": {
            **quality(reference.extractor, some, rest),
            **nearest(some, ArraySource({"image": others})),
        },
        "extractor": {
            "name": reference.extractor.name,
            "checksum": reference.extractor.checksum,
            **reference.extractor.protocol,
        },
        "data": {"train": train.protocol, "held_out": held_out.protocol},
        "counts": {
            "train": len(train),
            "held_out": len(held_out),
            "neighbours": len(reference.statistics.features),
        },
        "shape": list(train.spec["image"][0]),
        "accuracy": reference.extractor.protocol["test accuracy"],
        "classifier": _plain_classifier(reference)._asdict(),
    }
    return real, {"samples": _some(held)}


def _plain_classifier(reference: Reference) -> ClassificationReport:
    """The extractor as what it is, on the images that likelihoods are measured on."""
    outputs = extract(
        reference.extractor, reference.held_out, outputs=["logits"], limit=reference.num_evaluated
    )
    labels = reference.held_out[np.arange(len(outputs["logits"]))]["label"]
    return classification_report(jax.nn.log_softmax(outputs["logits"]), labels)


def measure(
    name: str,
    run: Run,
    reference: Reference,
    say: Callable[[str], object] = lambda doing: None,
) -> tuple[Results, Pictures]:
    """Every number of a trained run, and its pictures (uint8 [N, H, W, C] by name).

    Args:
        name: What the comparison calls the run.
        run: The run.
        reference: What to measure against.
        say: Function that is told what is measured next.

    Returns:
        The numbers as JSON has them, None where the family has none or one is not finite, with the
        reason in `why`; `lost` are the reasons of those that are not finite.
    """
    family, key = run.family, jax.random.key(reference.seed)
    recipe = find_recipe(run.name)
    why, lost = absences(family), list[str]()

    def attempt(entry: str, compute: Callable[[Run, Reference], Any], *others: str) -> Any:
        if entry in why:
            return None
        say(f"measuring, {entry.replace('_', ' ')}")
        try:
            return compute(run, reference)
        except FloatingPointError as error:
            why.update(dict.fromkeys((entry, *others), str(error)))
            lost.append(str(error))
            return None

    nats, report = attempt("likelihood", _likelihood, "classifier") or (None, None)
    results: Results = {
        "name": name,
        "kind": family.name,
        "module": run.name,
        "command": f"{recipe.command('train')} {shlex.join(flags(recipe, run.config))}".strip(),
        "protocol": dict(run.experiment.protocol),
        "step": run.step,
        "condition": key_of(family.conditioning) or "nothing",
        "average": bool(run.experiment.averages),
        "parameters": {
            network: int(sum(leaf.size for leaf in jax.tree.leaves(tree)))
            for network, tree in run.variables.params.items()
        },
        "training": _training(run),
        "likelihood": nats,
        "classifier": report,
        "round_trip": attempt("round_trip", _round_trip),
        "why": why,
        "lost": lost,
    }
    pictures: Pictures = {}
    samples = attempt("samples", lambda run, reference: _draw(run, reference, key))
    if samples is not None:
        measured = quality(reference.extractor, samples, reference.statistics)
        results["quality"] = {**measured, **nearest(samples, reference.train)}
        say("measuring, seconds of sampling")
        results["sampling"] = _sampling(run, key)
        shown = _some(samples, NEIGHBOURS)
        near = nearest_images(shown, reference.train)
        pictures["samples"] = _some(samples)
        pictures["neighbours"] = beside_neighbours(shown, reference.train, near)
    for strip in [strip for strip in STRIPS if strip in evaluation.drawable(run.experiment)]:
        drawn = attempt(strip, partial(_strip, strip=strip, key=key))
        if drawn is not None:
            pictures[strip] = drawn
    return results, pictures


def _strip(run: Run, reference: Reference, *, strip: str, key: Any) -> np.ndarray:
    return evaluation.make_picture(run.experiment, strip)(run.variables, key, *STRIP)


def absences(family: Family) -> dict[str, str]:
    """Why there are numbers that a family does not have, as follows from what it has."""
    why = {}
    conditioning = family.conditioning
    if family.sample is None:
        why["samples"] = "it has no prior to sample from"
    elif conditioning is not None and conditioning.sweep is None:
        why["samples"] = f"it samples only for given conditions {conditioning.key!r}"
    if _classes(family) is None:
        why["classifier"] = why["given_label"] = "it is not conditional on the label"
    if family.log_prob is None or family.bound is None:
        why["likelihood"] = why["classifier"] = "it has no likelihood of the images"
    elif not family.bound.eight_bit:
        why["bits_per_dim"] = "its likelihood is not of the 8-bit pixels"
    missing = [n for n in ("encode", "decode") if getattr(family, n) is None]
    if missing:
        words = {"encode": "encoder", "decode": "decoder"}
        why["round_trip"] = "it has no " + " and no ".join(words[n] for n in missing)
    if family.sampling is None:
        why["passes"] = "the family does not say"
    return why


def _classes(family: Family) -> int | None:
    """The number of classes that a family is conditional on, or None."""
    return None if family.conditioning is None else family.conditioning.num_classes


def _draw(run: Run, reference: Reference, key: Any) -> np.ndarray:
    """The samples, in calls of one size."""
    size = math.ceil(reference.num_samples / math.ceil(reference.num_samples / AT_ONCE))
    draw = evaluation.make_sample(run.experiment, make_strategy("jit"), batch_size=size)
    return draw(run.variables, key, reference.num_samples)


def _some(images: np.ndarray, most: int = SHOWN) -> np.ndarray:
    """At most so many, evenly spaced, as samples lie in order of their labels."""
    rows = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)
    return images[rows]


def _training(run: Run) -> Results:
    """Seconds of training proper, and the curves, from the run's own `metrics.csv`."""
    with open(f"{run.config.run_dir}/metrics.csv", newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    known, seconds, last = 0, 0.0, 0
    for row in rows:
        done, rate = int(row["step"]) - last, row.get("steps_per_second", 0.0)
        last = int(row["step"])
        if rate > 0:
            known, seconds = known + done, seconds + done / rate
    losses = [name for name in rows[-1] if name.endswith("loss")] if rows else []
    total = seconds * run.step / known if known else None
    return {
        "seconds": total,
        "batch_size": run.config.batch_size,
        "examples_per_second": run.step * run.config.batch_size / total if total else None,
        "curves": {
            name: [[r["step"], r[name]] for r in rows if math.isfinite(r.get(name, math.nan))]
            for name in losses
        },
    }


def _likelihood(run: Run, reference: Reference) -> tuple[Results, Results | None]:
    """-log p of held-out images in nats, and p(y | x) of a family that is conditional on classes.

    Of such a family log p(x) = log mean_y p(x | y).

    Raises:
        FloatingPointError: if it is not finite on an image; says on how many.
    """
    log_prob, bound = run.family.log_prob, run.family.bound
    conditioning, classes = run.family.conditioning, _classes(run.family)
    assert log_prob is not None
    assert bound is not None

    @jax.jit
    def nats(variables: Variables, raw: Mapping[str, Any], key: Any):
        prepare_key, noise = jax.random.split(key)
        batch = run.experiment.prepare(prepare_key, raw, False)
        if conditioning is None or classes is None:
            return log_prob(variables, batch, noise)[:, None]
        return class_log_likelihoods(
            log_prob, variables, batch, noise, classes, label_key=conditioning.key
        )

    rows, labels = [], []
    batches = eval_batches(run.experiment.held_out, 128, limit=reference.num_evaluated)
    for index, raw in enumerate(batches):
        kept = raw.pop("weight") > 0
        key = jax.random.fold_in(jax.random.key(reference.seed), index)
        rows.append(np.asarray(nats(run.variables, raw, key))[kept])
        if conditioning is not None and classes is not None:
            labels.append(raw[conditioning.key][kept])
    each = np.concatenate(rows)
    infinite = int(np.sum(~np.isfinite(each).all(axis=1)))
    if infinite:
        raise FloatingPointError(
            f"its likelihood is not finite on {infinite} of {len(each)} held-out images"
        )
    log_p = np.logaddexp.reduce(each.astype(np.float64), axis=1) - math.log(each.shape[1])
    protocol = run.experiment.held_out.protocol
    if not labels:
        return _summary(log_p, bound, protocol, None), None
    y = np.concatenate(labels)
    given_label = float(-each[np.arange(len(y)), y].mean())
    report = classification_report(np.asarray(posterior(jnp.asarray(each))), y)
    return _summary(log_p, bound._replace(given=None), protocol, given_label), report._asdict()


def _summary(log_p: np.ndarray, bound: Bound, data: str, given_label: float | None) -> Results:
    """The mean of -log p(x) with its standard error and what it is true for."""
    result = likelihood(
        bound,
        nats=float(-log_p.mean()),
        standard_error=float(log_p.std(ddof=1) / math.sqrt(len(log_p))),
        num_examples=len(log_p),
        data=data,
    )
    return {**result._asdict(), "given_label": given_label}


def _round_trip(run: Run, reference: Reference) -> Results:
    """The greatest, and the mean squared, difference of decode(encode(x)) from held-out x.

    Raises:
        FloatingPointError: if it is not finite.
    """
    family, experiment = run.family, run.experiment
    encode, decode = family.encode, family.decode
    assert encode is not None
    assert decode is not None

    @jax.jit
    def errors(variables: Variables, raw: Mapping[str, Any], key: Any):
        batch = experiment.prepare(key, raw, False)
        latents = encode(variables, batch, key)
        condition = condition_of(family.conditioning, batch)
        difference = decode(variables, latents, key, condition=condition) - batch["image"]
        return jnp.abs(difference).max(), jnp.square(difference).mean()

    rows = np.arange(min(len(experiment.held_out), reference.num_evaluated, AT_ONCE))
    raw = experiment.held_out[rows]
    largest, mean = errors(run.variables, raw, jax.random.key(reference.seed))
    errors_found = {"max": float(largest), "mse": float(mean)}
    if not all(math.isfinite(value) for value in errors_found.values()):
        raise FloatingPointError("its reconstructions of held-out images are not finite")
    return {**errors_found, "count": len(rows)}


def _sampling(run: Run, key: Any) -> Results:
    """Seconds for one image and for a batch, compiled, and what kind of work it is."""
    cost = run.family.sampling
    note = "" if cost is None else cost.note
    timed = _with_running_statistics(run)
    if timed is not run:
        note += "; timed with fixed batch statistics (samples: standing statistics)"
    draw = evaluation.make_sample(timed.experiment, make_strategy("jit"))
    calls: dict[str, Callable[[], object]] = {
        "one": lambda: draw(timed.variables, key, 1),
        "batch": lambda: draw(timed.variables, key, BATCH),
    }
    repeats = REPEATS
    seconds = interleaved(calls, repeats=repeats, warmup=1)
    if max(seconds.values()) < QUICK:
        repeats = 10 * REPEATS
        seconds = interleaved(calls, repeats=repeats)
    passes = None if cost is None else cost.passes
    return {"passes": passes, "note": note, **seconds, "batch_size": BATCH, "repeats": repeats}


def _with_running_statistics(run: Run) -> Run:
    """The run, its sampler without standing statistics of batch normalization.

    They depend on the parameters alone, not on the sample, so they are no part of what it costs.
    """
    sampler: Any = getattr(run.config, "sampler", None)
    if not getattr(sampler, "standing_batches", 0):
        return run
    running = dataclasses.replace(sampler, standing_batches=0)
    return open_run(run.config.run_dir, step=run.step, sampler=running)
