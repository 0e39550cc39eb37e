"""An extractor for small images that the project trains itself: no download, its own protocol."""

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxgen.core import Aux, Batch, Family, Metrics, Optimizer, Phase, PyTree, Variables
from jaxgen.data.arrays import read_npz
from jaxgen.data.sources import Source, decode
from jaxgen.files import open_atomically
from jaxgen.metrics.features import Extractor, extract, weights_checksum
from jaxgen.models.classifier import MAX_SIZE, MIN_SIZE, SmallClassifier
from jaxgen.training.fit import fit

NUM_FEATURES = 64
_NET = "classifier"


def train_classifier(
    train: Source,
    test: Source | None = None,
    *,
    steps: int = 600,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    num_features: int = NUM_FEATURES,
    seed: int = 0,
    target: Literal["label", "attributes"] = "label",
) -> Extractor:
    """Train a small classifier and make an extractor of its last hidden layer.

    Adam on the cross-entropy, that of attributes added up, its learning rate falling to 0 by a
    cosine. On the embedded digits it takes a few seconds. The same seed gives the same weights on
    the same machine; the checksum tells whether two numbers come from the same weights. The
    training images are held in memory.

    Args:
        train: Labelled images of 4 to 128 pixels a side, or images with attributes.
        test: Such images for the accuracy in the protocol, or None.
        steps: Number of steps of the optimizer.
        batch_size: Number of examples of a step.
        learning_rate: Learning rate of the first step.
        num_features: Width of the features.
        seed: Seed of the weights and of the order of examples.
        target: Entry that is read of the images: the class, or attributes of 0 and 1, of which one
            holds where its logit is positive.

    Returns:
        An extractor with the outputs `features` f32[N, num_features], in units of their root mean
        square over `train`, and `logits`. Its distances are named `FD-classifier`.

    Raises:
        ValueError: Sources without images or labels, with fewer than two classes, of different
            shapes, of a size out of range; numbers out of range.
        FloatingPointError: Every step was skipped because it was not finite.
    """
    _check_source("train", train, target)
    if target == "label" and (train.num_classes or 0) < 2:
        raise ValueError(f"train must have at least 2 classes, got {train.num_classes}")
    shape = train.spec["image"][0]
    if test is not None:
        _check_source("test", test, target)
        if test.spec["image"][0] != shape:
            raise ValueError(f"test must have images {shape}, got {test.spec['image'][0]}")
    if steps < 1 or num_features < 1 or not learning_rate > 0:
        raise ValueError(
            "steps, num_features and learning_rate must be positive, got "
            f"{steps}, {num_features} and {learning_rate}"
        )
    num_outputs = train.num_classes if target == "label" else train.spec[target][0][0]
    model = SmallClassifier(int(num_outputs or 0), num_features)
    train = decode(train)
    examples = {name: train.arrays[name] for name in ("image", target)}
    family = _family(model, steps, learning_rate, target)
    fitted = fit(family, examples, steps, batch_size=batch_size, seed=seed)
    weights = jax.device_get(fitted.variables.params[_NET])  # usable on whatever devices
    protocol = {
        "trained on": train.protocol,
        "steps": steps,
        "batch size": batch_size,
        "learning rate": learning_rate,
        "training seed": seed,
    }
    extractor = _extractor(model, weights, train.name, shape, protocol)
    # In units of their root mean square, so that a kernel's x.y / D is about 1.
    features = extract(extractor, train, batch_size=batch_size)["features"]
    scale = 1 / np.sqrt(np.mean(np.square(features), dtype=np.float64))
    extractor = extractor._replace(params={"weights": weights, "scale": np.float32(scale)})
    if test is None:
        return extractor
    verdicts = extract(extractor, test, outputs=("logits",), batch_size=batch_size)["logits"]
    right = test[np.arange(len(test))][target]
    read = verdicts.argmax(axis=1) if target == "label" else verdicts > 0
    accuracy = float(np.mean(read == right))
    tested = {"tested on": test.protocol, "test accuracy": accuracy}
    return extractor._replace(protocol={**extractor.protocol, **tested})


def _extractor(
    model: SmallClassifier,
    weights: PyTree,
    data: str,
    shape: tuple[int, ...],
    protocol: Mapping[str, Any],
    scale: Any = 1,
) -> Extractor:
    return Extractor(
        name=f"small classifier trained on {data}",
        suffix="classifier",
        apply=_apply_of(model),
        params={"weights": weights, "scale": np.float32(scale)},
        outputs=("features", "logits"),
        resizer="none",
        checksum=weights_checksum(weights),
        check=lambda other: _check_shape(other, shape),
        protocol=protocol,
    )


def kept_classifier(path: str | Path, train: Source, test: Source) -> Extractor:
    """`train_classifier` once: a file keeps its weights, so that it is the same ever after.

    Args:
        path: Name of a `.npz` file; read if it exists, otherwise written, whole or not at all, and
            where it cannot be a warning says so.
        train: Labelled images.
        test: Such images for the accuracy in the protocol.

    Raises:
        ValueError: A file that cannot be read, or one of a classifier of other images; and as
            `train_classifier`.
    """
    path = Path(path)
    if not path.exists():
        extractor = train_classifier(train, test)
        leaves = {f"leaf {i}": x for i, x in enumerate(jax.tree.leaves(extractor.params))}
        try:
            with open_atomically(path) as file:
                np.savez(file, protocol=np.asarray(json.dumps(dict(extractor.protocol))), **leaves)
        except OSError as error:
            warnings.warn(f"{path} is not kept: {error}", stacklevel=2)
        return extractor
    _check_source("train", train, "label")
    shape = train.spec["image"][0]
    model = SmallClassifier(int(train.num_classes or 0), NUM_FEATURES)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    form: Any = jax.tree.structure({"weights": like, "scale": 0})
    try:
        arrays = read_npz(path)
        protocol = json.loads(str(arrays["protocol"]))
        params = form.unflatten([arrays[f"leaf {i}"] for i in range(form.num_leaves)])
        shapes = (jax.tree.map(np.shape, tree) for tree in (like, params["weights"]))
        if len({str(each) for each in shapes}) > 1:
            raise ValueError("its arrays have other shapes")
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a classifier: {error!r}") from error
    if protocol["trained on"] != train.protocol:
        raise ValueError(
            f"{path} is a classifier of {protocol['trained on']}, not of {train.protocol}"
        )
    return _extractor(model, params["weights"], train.name, shape, protocol, params["scale"])


def _family(model: SmallClassifier, steps: int, learning_rate: float, target: str) -> Family:
    """The classifier as what `fit` trains: images at rest in, no samples out."""

    def init(key: Key[Array, ""], batch: Batch, fixed: PyTree = None) -> Variables:
        return Variables({_NET: model.init(key, _to_model_space(batch["image"]))})

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        outputs: Any = model.apply(variables.params[_NET], _to_model_space(batch["image"]))
        _, logits = outputs
        if target == "label":
            label = batch["label"].astype(jnp.int32)
            right = jnp.argmax(logits, axis=1) == label
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return losses, {"accuracy": right.astype(jnp.float32)}
        holds = batch[target].astype(jnp.float32)
        losses = optax.sigmoid_binary_cross_entropy(logits, holds).sum(axis=1)
        return losses, {"accuracy": jnp.mean((logits > 0) == (holds > 0.5), axis=1)}

    def loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]:
        losses, metrics = evaluate(variables, batch, key)
        return losses, Aux(metrics)

    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    phase = Phase("classification", "classification", loss)
    return Family(init, {"classification": Optimizer((_NET,), adam)}, (phase,), evaluate)


@lru_cache
def _apply_of(model: SmallClassifier) -> Any:
    """The same function for equal models, so that it is compiled once."""

    def apply(params: Any, images: Array) -> dict[str, Array]:
        features, logits = model.apply(params["weights"], _to_model_space(images))
        return {"features": features * params["scale"], "logits": logits}

    return apply


def _to_model_space(image: Any) -> Array:
    return jnp.asarray(image, jnp.float32) / 127.5 - 1


def _check_source(name: str, source: Source, target: str) -> None:
    if not {"image", target} <= set(source.spec):
        kinds = {"label": "labels"}.get(target, target)
        raise ValueError(f"{name} must have images and {kinds}, got {sorted(source.spec)}")
    height, width, _ = source.spec["image"][0]
    if min(height, width) < MIN_SIZE or max(height, width) > MAX_SIZE:
        raise ValueError(
            f"{name} must have images of {MIN_SIZE} to {MAX_SIZE} pixels a side, "
            f"got {height}x{width}; resize them"
        )


def _check_shape(other: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if tuple(other) != tuple(shape):
        raise ValueError(
            f"the classifier was trained on images {shape} (height, width, channels), "
            f"got {other}; give images of that shape, or train_on= a labelled set of such images"
        )
