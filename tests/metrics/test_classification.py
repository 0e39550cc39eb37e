import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.metrics.classification import (
    class_log_likelihoods,
    classification_report,
    posterior,
)


def gaussian_log_prob(params, model_state, batch, key):
    """log N(x; mean of the label, 1)."""
    means = params["means"][batch["label"]]
    return -0.5 * jnp.square(batch["image"] - means) - 0.5 * jnp.log(2 * jnp.pi)


def test_bayes_rule_with_gaussians_is_a_logistic_regression(key):
    params = {"means": jnp.asarray([-1.0, 1.0])}
    batch = {"image": jnp.linspace(-2, 2, 9), "label": jnp.zeros(9, jnp.int32)}
    scores = jax.jit(class_log_likelihoods, static_argnums=(0, 5))(
        gaussian_log_prob, params, {}, batch, key, 2
    )
    found = posterior(scores, [0.8, 0.2])
    expected = jax.nn.log_sigmoid(2 * batch["image"] + np.log(0.2 / 0.8))
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(found).sum(1), 1, rtol=1e-6)


def test_all_classes_see_the_same_noise(key):
    def noisy(params, model_state, batch, key):
        return jax.random.normal(key, batch["image"].shape)

    batch = {"image": jnp.zeros(4)}
    scores = class_log_likelihoods(noisy, {}, {}, batch, key, 3)
    np.testing.assert_array_equal(scores, jnp.broadcast_to(scores[:, :1], (4, 3)))


def test_a_prior_of_zero_excludes_a_class():
    found = posterior(jnp.asarray([[0.0, 50.0]]), [1.0, 0.0])
    np.testing.assert_array_equal(jnp.exp(found), [[1.0, 0.0]])


def test_report_by_hand():
    p = np.asarray([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.25, 0.75]])
    report = classification_report(np.log(p), np.asarray([0, 1, 1, 0]), num_bins=10)
    assert report.accuracy == 0.5
    assert report.num == 4
    assert report.nll == pytest.approx(-np.log([0.95, 0.05, 0.65, 0.25]).mean())
    assert report.ece == pytest.approx((2 * 0.45 + 0.35 + 0.75) / 4)  # bins of .95, .65 and .75


def test_a_calibrated_forecast_has_no_error():
    p = np.tile([[0.7, 0.3]], (10, 1))
    labels = np.asarray([0] * 7 + [1] * 3)
    assert classification_report(np.log(p), labels).ece == pytest.approx(0, abs=1e-12)


def test_bad_input(key):
    log_probs = np.log(np.full((3, 2), 0.5))
    for priors in ([0.5], [0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(ValueError, match="priors must be 2 probabilities that sum to 1"):
            posterior(jnp.zeros((3, 2)), priors)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        class_log_likelihoods(gaussian_log_prob, {}, {}, {"image": jnp.zeros(2)}, key, 1)
    with pytest.raises(ValueError, match="row 0 sums to 2"):
        classification_report(np.zeros((3, 2)), np.zeros(3, int))
    with pytest.raises(ValueError, match="row 1 sums to nan"):
        classification_report(log_probs * np.asarray([[1], [np.nan], [1]]), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\), got 0 to 2"):
        classification_report(log_probs, np.asarray([0, 1, 2]))
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        classification_report(log_probs, np.zeros(3, int), num_bins=0)
    with pytest.raises(ValueError, match="at least one row, got none"):
        classification_report(log_probs[:0], np.zeros(0, int))
