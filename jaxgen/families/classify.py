"""The generative classifier of any conditional family with a likelihood, by Bayes' rule."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxgen.core import Batch, Family, Metrics, Variables

# (variables, batch, key) -> nats f32[B]: `Family.log_prob`
LogProb = Callable[..., Array]


def evaluate_as_classifier(family: Family, num_classes: int) -> Family:
    """The family with an `evaluate` that also measures how well p(y | x) predicts the classes.

    Adds to the metrics, with equal priors: `accuracy`, 1 where the most probable class is the
    batch's `label`, and `label_nats`, -log p(label | x). It costs one likelihood a class.

    Args:
        family: A family that is conditioned on the batch's `label` and has a `log_prob`.
        num_classes: Number of classes 0, ..., num_classes - 1; at least 2.

    Raises:
        ValueError: A family without `log_prob`, or fewer than two classes.
    """
    log_prob = family.log_prob
    if log_prob is None:
        raise ValueError("family must have a log_prob: a classifier needs p(x | y)")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")

    def evaluate(
        variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]:
        values, metrics = family.evaluate(variables, batch, key)
        log_p = posterior(class_log_likelihoods(log_prob, variables, batch, key, num_classes))
        label = batch["label"].astype(jnp.int32)  # a byte cannot be compared with 256 classes
        right = jnp.argmax(log_p, axis=1) == label
        nats = -jnp.take_along_axis(log_p, label[:, None], axis=1)[:, 0]
        return values, {**metrics, "accuracy": right.astype(jnp.float32), "label_nats": nats}

    return family._replace(evaluate=evaluate)


def class_log_likelihoods(
    log_prob: LogProb,
    variables: Variables,
    batch: Batch,
    key: Key[Array, ""],
    num_classes: int,
    *,
    label_key: str = "label",
) -> Float[Array, "batch classes"]:
    """log p(x | y) of each example under each class, nats; a pure function that compiles.

    The noise of a likelihood that has some (dequantization, a sampled bound) is the same for all
    classes, so that it does not decide between them.

    Args:
        log_prob: The `log_prob` of a family that is conditioned on the class.
        variables: The family's variables.
        batch: Examples; whatever label they have is ignored.
        key: PRNG key of the noise.
        num_classes: Number of classes 0, ..., num_classes - 1.
        label_key: The batch's entry that holds the class.

    Returns:
        One row an example, one column a class.

    Raises:
        ValueError: Fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    size = len(jax.tree.leaves(dict(batch))[0])

    def one(label: Array) -> Array:
        labels = jnp.broadcast_to(label.reshape(1), (size,))
        return log_prob(variables, {**batch, label_key: labels}, key)

    return jax.lax.map(one, jnp.arange(num_classes, dtype=jnp.int32)).T


def posterior(
    log_likelihoods: Float[Array, "batch classes"], priors: Sequence[float] | None = None
) -> Float[Array, "batch classes"]:
    r"""log p(y | x) by Bayes' rule.

    $$\log p(y | x) = \log p(x | y) + \log p(y) - \log \sum_{y'} p(x | y') p(y')$$

    Args:
        log_likelihoods: Log-likelihoods log p(x | y), nats.
        priors: Probabilities p(y), which sum to one; None for equal ones.

    Returns:
        Log-probabilities; their exponentials sum to one in each row.

    Raises:
        ValueError: Priors that are not one probability for each class.

    Examples:
        >>> jnp.exp(posterior(jnp.log(jnp.asarray([[0.2, 0.6]])), [0.75, 0.25]))
        Array([[0.5, 0.5]], dtype=float32)
    """
    classes = log_likelihoods.shape[1]
    p = np.full(classes, 1 / classes) if priors is None else np.asarray(priors, np.float64)
    if p.shape != (classes,) or not (p >= 0).all() or not math.isclose(p.sum(), 1, abs_tol=1e-6):
        raise ValueError(f"priors must be {classes} probabilities that sum to 1, got {priors}")
    with np.errstate(divide="ignore"):
        log_p = jnp.asarray(np.log(p), log_likelihoods.dtype)
    return jax.nn.log_softmax(log_likelihoods + log_p[None], axis=1)
