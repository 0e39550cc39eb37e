"""The loss of masked models at known values."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxgen.losses.masked import masked_accuracy, masked_cross_entropy

LOGITS = jax.random.normal(jax.random.key(0), (3, 4, 5))
TARGETS = jnp.array([[0, 1, 2, 3], [4, 4, 0, 1], [2, 2, 2, 2]])
MASKED = jnp.array([[True, False, True, True], [False, True, False, False], [False] * 4])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_definition(smoothing):
    """The mean over what is masked, of the cross entropy to smoothed targets."""
    logits = np.asarray(LOGITS, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    q = (1 - smoothing) * np.eye(5)[np.asarray(TARGETS)] + smoothing / 5
    nats, masked = -(q * log_p).sum(-1), np.asarray(MASKED)
    expected = [nats[0][masked[0]].mean(), nats[1][masked[1]].mean(), 0.0]
    got = masked_cross_entropy(LOGITS, TARGETS, MASKED, smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_what_is_not_masked_does_not_matter():
    """Neither to the loss nor to its gradient."""
    moved = LOGITS.at[0, 1].set(jnp.array([50.0, -3.0, 2.0, 1e4, 0.0]))
    targets = TARGETS.at[0, 1].set(77)
    got = masked_cross_entropy(moved, targets, MASKED, 0.1)
    np.testing.assert_array_equal(got, masked_cross_entropy(LOGITS, TARGETS, MASKED, 0.1))
    slope = jax.grad(lambda x: masked_cross_entropy(x, TARGETS, MASKED, 0.1).sum())(moved)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(np.abs(slope).sum(-1) > 0, MASKED)


def test_codes_that_do_not_exist_are_nan():
    for code in (-1, 5):
        got = masked_cross_entropy(LOGITS, TARGETS.at[0, 0].set(code), MASKED, 0.1)
        np.testing.assert_array_equal(np.isnan(got), [True, False, False])


def test_bytes_as_codes():
    """256 values are more than a byte can be compared with."""
    logits, targets = jnp.zeros((1, 2, 256)), jnp.array([[0, 255]], jnp.uint8)
    got = masked_cross_entropy(logits, targets, jnp.ones((1, 2), bool))
    np.testing.assert_allclose(got, np.log(256), rtol=1e-6)


def test_accuracy():
    logits = 3 * jax.nn.one_hot(jnp.array([[0, 0, 0, 3], [4, 4, 4, 4], [2, 2, 2, 2]]), 5)
    got = masked_accuracy(logits, TARGETS, MASKED)
    np.testing.assert_allclose(got, [2 / 3, 1.0, 0.0], rtol=1e-6)


def test_bad_input():
    """Also where types are not checked, as in a user's code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="targets and masked must match in shape"):
            masked_cross_entropy(LOGITS, TARGETS, MASKED[:, :3])
        with pytest.raises(ValueError, match=r"logits must have the targets' shape \(3, 3\)"):
            masked_cross_entropy(LOGITS, TARGETS[:, :3], MASKED[:, :3])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1.0"):
        masked_cross_entropy(LOGITS, TARGETS, MASKED, 1.0)
