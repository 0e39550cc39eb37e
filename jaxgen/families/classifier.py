"""The generative classifier of any conditional family with a likelihood, by Bayes' rule."""

import jax.numpy as jnp

from jaxgen.core import Aux, Family
from jaxgen.metrics.classification import class_log_likelihoods, posterior


def evaluate_as_classifier(family: Family, num_classes: int) -> Family:
    """The family with an `evaluate` that also says how well p(y | x) tells the classes.

    Adds to the metrics, with equal priors: `accuracy`, 1 where the most probable class is the
    batch's `label`, and `label_nats`, -log p(label | x). It costs one likelihood a class.

    Args:
        family: one told the batch's `label`, with a `log_prob`.
        num_classes: classes 0, ..., num_classes - 1; at least 2.

    Raises:
        ValueError: a family without `log_prob`, or fewer than two classes.
    """
    log_prob = family.log_prob
    if log_prob is None:
        raise ValueError("family must have a log_prob: a classifier needs p(x | y)")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")

    def evaluate(params, model_state, batch, key, *, train: bool):
        loss, aux = family.evaluate(params, model_state, batch, key, train=train)
        found = posterior(
            class_log_likelihoods(log_prob, params, model_state, batch, key, num_classes)
        )
        label = batch["label"]
        right = jnp.argmax(found, axis=1) == label
        nats = -jnp.take_along_axis(found, label[:, None], axis=1)[:, 0]
        more = {"accuracy": right.astype(jnp.float32), "label_nats": nats}
        return loss, Aux({**aux.metrics, **more}, aux.model_state)

    return family._replace(evaluate=evaluate)
