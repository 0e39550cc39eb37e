"""What the comparison measures of one run: every number, and the pictures."""

import csv
import dataclasses
import importlib
import math
import shlex
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.harness import interleaved
from experiments.comparison.families import Run, flags
from jaxgen.core import State
from jaxgen.data.pipeline import eval_batches
from jaxgen.data.sources import ArraySource, Source
from jaxgen.metrics.classification import (
    ClassificationReport,
    class_log_likelihoods,
    classification_report,
    posterior,
)
from jaxgen.metrics.classifier import train_classifier
from jaxgen.metrics.features import Extractor, extract
from jaxgen.metrics.frechet import frechet_distance
from jaxgen.metrics.likelihood import likelihood
from jaxgen.metrics.neighbours import beside_neighbours, nearest_images
from jaxgen.metrics.prdc import prdc
from jaxgen.metrics.statistics import Statistics, image_statistics
from jaxgen.training import evaluation
from jaxgen.training.strategies import make_strategy

VERSION = 2  # of what is measured; raised with any change of it, so that nothing old is shown
BATCH = 64  # images of the timed batch
REPEATS = 5
QUICK = 0.05  # seconds: what takes less is timed ten times as often
AT_ONCE = 256
MOST_NEIGHBOURS = 10_000  # training images, at random, of precision and recall
SHOWN = 40
NEIGHBOURS = 8
STRIP = (2, 8)
STRIPS = {
    "reconstructions": "held-out images above their reconstructions",
    "completions": "held-out image, its upper half, and completions of that half",
    "between_examples": "from one held-out image's latent to another's",
    "interpolation_spherical": "from one random latent to another, on a great circle",
    "interpolation": "from one random latent to another",
}
Found = dict[str, Any]


class Reference(NamedTuple):
    """The real images that all are measured against.

    Attributes:
        train: the training images.
        held_out: the held-out ones.
        extractor: a classifier trained on the training images.
        statistics: of the training images.
        num_samples: drawn of each family, and the most held-out images of the floor.
        num_evaluated: the most held-out images that likelihoods are measured on.
        seed: of samples and noise.
    """

    train: Source
    held_out: Source
    extractor: Extractor
    statistics: Statistics
    num_samples: int
    num_evaluated: int
    seed: int


def make_reference(
    train: Source,
    held_out: Source,
    *,
    num_samples: int,
    num_evaluated: int,
    seed: int,
    classifier_steps: int = 600,
) -> Reference:
    """Trains the extractor and takes the training images' statistics.

    Raises:
        ValueError: for images that the classifier cannot see, or without labels.
    """
    extractor = train_classifier(train, held_out, steps=classifier_steps, seed=seed)
    statistics = image_statistics(extractor, train, max_features=MOST_NEIGHBOURS)
    return Reference(train, held_out, extractor, statistics, num_samples, num_evaluated, seed)


def measure_real(reference: Reference) -> tuple[Found, dict[str, np.ndarray]]:
    """The floor: what held-out images, and a random part of the training images, would get."""
    train, held_out, count = reference.train, reference.held_out, reference.num_samples
    order = np.random.default_rng(reference.seed).permutation(len(train))
    size = min(count, len(train) // 2)
    held = held_out[np.arange(min(count, len(held_out)))]["image"]
    some, others = (train[np.sort(rows)]["image"] for rows in (order[:size], order[size:]))
    rest = image_statistics(reference.extractor, others, max_features=MOST_NEIGHBOURS)
    real = {
        "held_out": {**_quality(held, reference.statistics, reference), **_nearest(held, train)},
        "train_part": {
            **_quality(some, rest, reference),
            **_nearest(some, ArraySource({"image": others})),
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
    found = extract(
        reference.extractor, reference.held_out, outputs=["logits"], limit=reference.num_evaluated
    )
    labels = reference.held_out[np.arange(len(found["logits"]))]["label"]
    return classification_report(jax.nn.log_softmax(found["logits"]), labels)


def measure(run: Run, state: State, reference: Reference) -> tuple[Found, dict[str, np.ndarray]]:
    """Every number of a trained run, and its pictures (uint8 [N, H, W, C] by name).

    Args:
        run: the run.
        state: its newest checkpoint.
        reference: what to measure against.

    Returns:
        The numbers as JSON has them, None where the family has none, with the reason in `why`.
    """
    experiment, key = run.experiment, jax.random.key(reference.seed)
    found: Found = {
        "name": run.name,
        "kind": run.kind,
        "module": run.module,
        "command": shlex.join(["python", "-m", run.module, *flags(run.module, run.config)]),
        "protocol": dict(experiment.protocol),
        "step": int(state.step),
        "told": "label" if experiment.sample_condition is not None else "nothing",
        "average": bool(state.ema),
        "parameters": {
            network: int(sum(leaf.size for leaf in jax.tree.leaves(tree)))
            for network, tree in state.params.items()
        },
        "training": _training(run, int(state.step)),
        "why": {},
    }
    pictures: dict[str, np.ndarray] = {}
    _likelihood(run, state, reference, found)
    _round_trip(run, state, reference, found)
    if run.kind == "autoencoder":
        found["why"]["samples"] = "it has no prior to sample from"
    else:
        strategy = make_strategy("jit")
        size = math.ceil(reference.num_samples / math.ceil(reference.num_samples / AT_ONCE))
        draw = evaluation.make_sample(experiment, strategy, batch_size=size)
        samples = draw(state, key, reference.num_samples)
        found["quality"] = {
            **_quality(samples, reference.statistics, reference),
            **_nearest(samples, reference.train),
        }
        found["sampling"] = _sampling(run, state, key)
        shown = _some(samples, NEIGHBOURS)
        near = nearest_images(shown, reference.train)
        pictures["samples"] = _some(samples)
        pictures["neighbours"] = beside_neighbours(shown, reference.train, near)
    for name in STRIPS:
        if name in experiment.pictures:
            drawn = evaluation.make_picture(experiment, name)(state, key, *STRIP)
            pictures[name] = drawn
    return found, pictures


def _some(images: np.ndarray, most: int = SHOWN) -> np.ndarray:
    """At most so many, evenly spaced, as samples lie in order of their labels."""
    rows = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)
    return images[rows]


def _quality(images: np.ndarray, against: Statistics, reference: Reference) -> Found:
    made = image_statistics(reference.extractor, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distance = frechet_distance(made.moments, against.moments)
    return {
        "FD-classifier": distance,
        **prdc(made.features, against.features)._asdict(),
        "count": len(images),
        "reference_count": against.moments.num,
        "warnings": [str(one.message) for one in caught],
    }


def _nearest(images: np.ndarray, training: Any) -> Found:
    """The median distance, in pixels of [0, 1], to the nearest training image."""
    distances = nearest_images(images, training).distances
    return {"nearest": float(np.median(distances)), "copies": int(np.sum(distances == 0))}


def _training(run: Run, steps: int) -> Found:
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
    total = seconds * steps / known if known else None
    return {
        "seconds": total,
        "batch_size": run.config.batch_size,
        "examples_per_second": steps * run.config.batch_size / total if total else None,
        "curves": {
            name: [[row["step"], row[name]] for row in rows if name in row] for name in losses
        },
    }


def _likelihood(run: Run, state: State, reference: Reference, found: Found) -> None:
    """-log p of held-out images, nats; of a conditional family log p(x) = log mean_y p(x | y)."""
    family, experiment = run.experiment.family, run.experiment
    found["likelihood"] = found["classifier"] = None
    if family.log_prob is None or family.bound is None:
        found["why"]["likelihood"] = (
            "it gives samples without a density"
            if run.kind == "gan"
            else "its squared error is no likelihood of the 8-bit data"
        )
        found["why"]["classifier"] = "it has no likelihood"
        return
    log_prob, classes = family.log_prob, reference.train.num_classes or 0
    told = found["told"] == "label"

    @jax.jit
    def nats(params: Any, model_state: Any, raw: Mapping[str, Any], key: Any):
        prepare_key, noise = jax.random.split(key)
        batch = experiment.prepare(prepare_key, raw, False)
        if told:
            return class_log_likelihoods(log_prob, params, model_state, batch, noise, classes)
        return log_prob(params, model_state, batch, noise)[:, None]

    rows, labels = [], []
    params = evaluation.averaged(state)
    for index, raw in enumerate(
        eval_batches(experiment.held_out, 128, limit=reference.num_evaluated)
    ):
        kept = raw.pop("mask") > 0
        key = jax.random.fold_in(jax.random.key(reference.seed), index)
        rows.append(np.asarray(nats(params, state.model_state, raw, key))[kept])
        labels.append(raw["label"][kept])
    each, y = np.concatenate(rows), np.concatenate(labels)
    log_p = np.logaddexp.reduce(each.astype(np.float64), axis=1) - math.log(each.shape[1])
    mean, error = -log_p.mean(), log_p.std(ddof=1) / math.sqrt(len(log_p))
    bound = family.bound._replace(given=None) if told else family.bound
    found["likelihood"] = {
        **likelihood(
            bound,
            nats=float(mean),
            standard_error=float(error),
            num_examples=len(log_p),
            data=experiment.held_out.protocol,
        )._asdict(),
        "given_label": float(-each[np.arange(len(y)), y].mean()) if told else None,
    }
    if not bound.eight_bit:
        found["why"]["bits_per_dim"] = "its likelihood is not of the 8-bit pixels"
    if not told:
        found["why"]["classifier"] = "it is not told the label"
        return
    report = classification_report(np.asarray(posterior(jnp.asarray(each))), y)
    found["classifier"] = report._asdict()


def _round_trip(run: Run, state: State, reference: Reference, found: Found) -> None:
    """The greatest, and the mean squared, difference of decode(encode(x)) from held-out x."""
    family, experiment = run.experiment.family, run.experiment
    found["round_trip"] = None
    encoder, decoder = family.encode, family.decode
    if encoder is None or decoder is None:
        found["why"]["round_trip"] = {
            "gan": "it has no encoder: an image's latent is unknown",
            "autoregressive": "it has no latents: it draws pixel by pixel",
            "diffusion": "its sampler is random, without an encoder here",
        }.get(run.kind, "it has no encoder and decoder")
        return

    @jax.jit
    def errors(params: Any, model_state: Any, raw: Mapping[str, Any], key: Any):
        batch = experiment.prepare(key, raw, False)
        latents = encoder(params, model_state, batch, key)
        told = {"condition": batch["label"]} if found["told"] == "label" else {}
        difference = decoder(params, model_state, latents, key, **told) - batch["image"]
        return jnp.abs(difference).max(), jnp.square(difference).mean()

    rows = np.arange(min(len(experiment.held_out), reference.num_evaluated, AT_ONCE))
    raw = experiment.held_out[rows]
    key = jax.random.key(reference.seed)
    largest, mean = errors(evaluation.averaged(state), state.model_state, raw, key)
    found["round_trip"] = {"max": float(largest), "mse": float(mean), "count": len(rows)}


def _sampling(run: Run, state: State, key: Any) -> Found:
    """Seconds for one image and for a batch, compiled, and what kind of work it is."""
    experiment, config = run.experiment, run.config
    height, width, channels = experiment.held_out.spec["image"][0]
    how: Found = {
        "order": "parallel",
        "passes": 1,
        "note": "one pass of the network for all pixels",
    }
    if run.kind == "gan":
        # The statistics of batch normalization depend on the parameters alone, not on the sample.
        fixed = dataclasses.replace(config.sampler, standing_batches=0)
        module = importlib.import_module(run.module)
        experiment = module.build(dataclasses.replace(config, sampler=fixed))
        how["note"] += "; timed with fixed batch statistics (samples: standing statistics)"
    elif run.kind == "flow":
        how["note"] = "one inverse pass through all layers, all pixels at once"
    elif run.kind == "autoregressive":
        by_value = config.model.network != "pixelcnnpp"
        how["order"] = "sequential"
        how["passes"] = height * width * (channels if by_value else 1)
        how["note"] = f"one value after another ({config.sampler} sampler)"
    elif run.kind == "diffusion":
        steps = config.sampler.num_steps
        chain = config.diffusion.num_timesteps if config.sampler.name == "ancestral" else 50
        how["order"] = "sequential"
        how["passes"] = steps or chain
        how["note"] = f"denoising steps ({config.sampler.name} sampler), each for all pixels"
    draw = evaluation.make_sample(experiment, make_strategy("jit"))
    calls = {"one": lambda: draw(state, key, 1), "batch": lambda: draw(state, key, BATCH)}
    repeats = REPEATS
    seconds = interleaved(calls, repeats=repeats, warmup=1)
    if max(seconds.values()) < QUICK:
        repeats = 10 * REPEATS
        seconds = interleaved(calls, repeats=repeats)
    return {**how, **seconds, "batch_size": BATCH, "repeats": repeats}
