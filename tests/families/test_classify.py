"""The classifier by Bayes' rule, of likelihoods whose posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.core import Family, Variables
from jaxgen.families.classify import (
    class_log_likelihoods,
    evaluate_as_classifier,
    posterior,
)


def gaussian_log_prob(variables, batch, key):
    """log N(x; mean of the label, 1)."""
    means = variables.params["means"][batch["label"]]
    return -0.5 * jnp.square(batch["image"] - means) - 0.5 * jnp.log(2 * jnp.pi)


def test_bayes_rule_with_gaussians_is_a_logistic_regression(key):
    variables = Variables({"means": jnp.asarray([-1.0, 1.0])})
    batch = {"image": jnp.linspace(-2, 2, 9), "label": jnp.zeros(9, jnp.int32)}
    scores = jax.jit(class_log_likelihoods, static_argnums=(0, 4))(
        gaussian_log_prob, variables, batch, key, 2
    )
    log_p = posterior(scores, [0.8, 0.2])
    expected = jax.nn.log_sigmoid(2 * batch["image"] + np.log(0.2 / 0.8))
    np.testing.assert_allclose(log_p[:, 1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(log_p).sum(1), 1, rtol=1e-6)


def test_all_classes_see_the_same_noise(key):
    def noisy(variables, batch, key):
        return jax.random.normal(key, batch["image"].shape)

    batch = {"image": jnp.zeros(4)}
    scores = class_log_likelihoods(noisy, Variables({}), batch, key, 3)
    np.testing.assert_array_equal(scores, jnp.broadcast_to(scores[:, :1], (4, 3)))


def test_a_prior_of_zero_excludes_a_class():
    log_p = posterior(jnp.asarray([[0.0, 50.0]]), [1.0, 0.0])
    np.testing.assert_array_equal(jnp.exp(log_p), [[1.0, 0.0]])


def family(log_prob=gaussian_log_prob):
    def evaluate(variables, batch, key):
        return -log_prob(variables, batch, key), {"own": batch["image"]}

    return Family(lambda key, batch: Variables({}), {}, (), evaluate, log_prob=log_prob)


def test_evaluate_adds_the_classifiers_metrics(key):
    """The values stay the family's own; the class is that of the nearest mean."""
    variables = Variables({"means": jnp.asarray([-1.0, 1.0])})
    batch = {"image": jnp.asarray([-2.0, 0.5, 0.5]), "label": jnp.asarray([0, 0, 1])}
    values, metrics = evaluate_as_classifier(family(), 2).evaluate(variables, batch, key)
    np.testing.assert_array_equal(values, -gaussian_log_prob(variables, batch, key))
    np.testing.assert_array_equal(metrics["own"], batch["image"])
    np.testing.assert_array_equal(metrics["accuracy"], [1, 0, 1])
    np.testing.assert_allclose(
        metrics["label_nats"], -jax.nn.log_sigmoid(jnp.asarray([4.0, -1.0, 1.0])), rtol=1e-5
    )


def test_bad_input(key):
    for priors in ([0.5], [0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(ValueError, match="priors must be 2 probabilities that sum to 1"):
            posterior(jnp.zeros((3, 2)), priors)
    batch = {"image": jnp.zeros(2)}
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        class_log_likelihoods(gaussian_log_prob, Variables({}), batch, key, 1)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        evaluate_as_classifier(family(), 1)
    with pytest.raises(ValueError, match="family must have a log_prob"):
        evaluate_as_classifier(family()._replace(log_prob=None), 3)
