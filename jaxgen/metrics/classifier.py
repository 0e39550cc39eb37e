"""An extractor for small images that the project trains itself: no download, its own protocol."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import Source
from jaxgen.metrics.features import Extractor, extract, weights_checksum
from jaxgen.models.classifier import MAX_SIZE, MIN_SIZE, SmallClassifier


def train_classifier(
    train: Source,
    test: Source | None = None,
    *,
    steps: int = 600,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    num_features: int = 64,
    seed: int = 0,
) -> Extractor:
    """Trains a small classifier and makes an extractor of its last hidden layer.

    Adam on the cross-entropy, its learning rate falling to 0 by a cosine. On the embedded digits
    it takes a few seconds. The same seed gives the same weights on the same machine; the checksum
    tells whether two numbers come from the same weights.

    Args:
        train: labelled images of 4 to 32 pixels a side.
        test: labelled images for the accuracy in the protocol, or None.
        steps: of the optimizer.
        batch_size: examples a step.
        learning_rate: its first value.
        num_features: width of the features.
        seed: of the weights and the order of examples.

    Returns:
        An extractor with the outputs `features` f32[N, num_features], in units of their root mean
        square over `train`, and `logits`. Its distances are named `FD-classifier`.

    Raises:
        ValueError: sources without images or labels, with fewer than two classes, of different
            shapes, of a size out of range; numbers out of range.
    """
    _check_source("train", train)
    if (train.num_classes or 0) < 2:
        raise ValueError(f"train must have at least 2 classes, got {train.num_classes}")
    shape = train.spec["image"][0]
    if test is not None:
        _check_source("test", test)
        if test.spec["image"][0] != shape:
            raise ValueError(f"test must have images {shape}, got {test.spec['image'][0]}")
    if steps < 1 or num_features < 1 or not learning_rate > 0:
        raise ValueError(
            "steps, num_features and learning_rate must be positive, got "
            f"{steps}, {num_features} and {learning_rate}"
        )
    model = SmallClassifier(int(train.num_classes or 0), num_features)
    weights = _fit(model, Pipeline(train, batch_size, seed=seed), steps, learning_rate, seed)
    params = {"weights": weights, "scale": np.float32(1)}
    extractor = Extractor(
        name=f"small classifier trained on {train.name}",
        suffix="classifier",
        apply=_apply_of(model),
        params=params,
        outputs=("features", "logits"),
        resizer="none",
        checksum=weights_checksum(weights),
        check=lambda found: _check_shape(found, shape),
        protocol={
            "trained on": train.protocol,
            "steps": steps,
            "batch size": batch_size,
            "learning rate": learning_rate,
            "training seed": seed,
        },
    )
    # In units of their root mean square, so that a kernel's x.y / D is about 1.
    features = extract(extractor, train, batch_size=batch_size)["features"]
    scale = 1 / np.sqrt(np.mean(np.square(features), dtype=np.float64))
    extractor = extractor._replace(params={**params, "scale": np.float32(scale)})
    if test is None:
        return extractor
    verdicts = extract(extractor, test, outputs=("logits",), batch_size=batch_size)["logits"]
    labels = test[np.arange(len(test))]["label"]
    accuracy = float(np.mean(verdicts.argmax(axis=1) == labels))
    tested = {"tested on": test.protocol, "test accuracy": accuracy}
    return extractor._replace(protocol={**extractor.protocol, **tested})


def _fit(
    model: SmallClassifier, pipeline: Pipeline, steps: int, learning_rate: float, seed: int
) -> Any:
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    optimizer = optax.adam(schedule)

    def loss_fn(params: Any, batch: Any) -> Array:
        _, logits = model.apply(params, _to_model_space(batch["image"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean()

    @jax.jit
    def update(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, batch), opt_state)
        return optax.apply_updates(params, updates), opt_state

    first = pipeline.host_batch(0)
    params = model.init(jax.random.key(seed), _to_model_space(first["image"]))
    opt_state = optimizer.init(params)
    for step in range(steps):
        params, opt_state = update(params, opt_state, pipeline.host_batch(step))
    return params


@lru_cache
def _apply_of(model: SmallClassifier) -> Any:
    """The same function for equal models, so that it is compiled once."""

    def apply(params: Any, images: Array) -> dict[str, Array]:
        features, logits = model.apply(params["weights"], _to_model_space(images))
        return {"features": features * params["scale"], "logits": logits}

    return apply


def _to_model_space(image: Any) -> Array:
    return jnp.asarray(image, jnp.float32) / 127.5 - 1


def _check_source(name: str, source: Source) -> None:
    if not {"image", "label"} <= set(source.spec):
        raise ValueError(f"{name} must have images and labels, got {sorted(source.spec)}")
    height, width, _ = source.spec["image"][0]
    if min(height, width) < MIN_SIZE or max(height, width) > MAX_SIZE:
        raise ValueError(
            f"{name} must have images of {MIN_SIZE} to {MAX_SIZE} pixels a side, "
            f"got {height}x{width}; resize them"
        )


def _check_shape(found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if tuple(found) != tuple(shape):
        raise ValueError(
            f"the classifier was trained on images {shape} (height, width, channels), "
            f"got {found}; give images of that shape"
        )
