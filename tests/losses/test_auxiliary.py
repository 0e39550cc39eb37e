"""A discriminator's second head: classes and attributes against PyTorch's, extremes, bad input."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxgen.losses.auxiliary import auxiliary_attributes_loss, auxiliary_classifier_loss

LOG2 = math.log(2)
CLASSES, LABELS = jnp.zeros((3, 5)), jnp.zeros(3, jnp.int32)


@pytest.fixture
def unchecked():
    """As a user runs it: without the tests' own shape checks, which would raise first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_auxiliary_classifier(key):
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]))
    loss = auxiliary_classifier_loss(logits, jnp.array([2, 0]))
    np.testing.assert_allclose(loss, [math.log(8 / 5), math.log(4)], rtol=1e-6)
    outside = auxiliary_classifier_loss(logits, jnp.array([3, -1]))
    assert jnp.isnan(outside).all()
    torch = pytest.importorskip("torch")
    logits, labels = 4 * jax.random.normal(key, (6, 5)), jnp.array([0, 4, 2, 2, 1, 3])
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(np.array(logits)),
        torch.from_numpy(np.array(labels)).long(),
        reduction="none",
    )
    np.testing.assert_allclose(auxiliary_classifier_loss(logits, labels), expected, rtol=1e-5)


@pytest.mark.parametrize(("num_classes", "dtype"), [(256, "uint8"), (200, "int8")])
def test_auxiliary_classifier_with_labels_of_few_bits(num_classes, dtype):
    loss = auxiliary_classifier_loss(jnp.zeros((2, num_classes)), jnp.array([0, 100], dtype))
    np.testing.assert_allclose(loss, math.log(num_classes), rtol=1e-6)


def test_auxiliary_attributes(key):
    """By hand, and the sum, not the mean, over the attributes of PyTorch's; NaN for a 2."""
    logits = jnp.log(jnp.array([[3.0, 1.0], [1 / 3, 9.0]]))  # s = 3/4, 1/2; 1/4, 9/10
    loss = auxiliary_attributes_loss(logits, jnp.array([[1, 0], [1, 0]]))
    np.testing.assert_allclose(loss, [math.log(4 / 3) + LOG2, math.log(40)], rtol=1e-6)
    assert jnp.isnan(auxiliary_attributes_loss(logits, jnp.array([[2, 0], [0, -1]]))).all()
    torch = pytest.importorskip("torch")
    logits = 4 * jax.random.normal(key, (6, 5))
    asked = jax.random.bernoulli(jax.random.key(1), 0.3, (6, 5)).astype(jnp.uint8)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(np.array(logits)),
        torch.from_numpy(np.array(asked)).float(),
        reduction="none",
    ).sum(dim=1)
    np.testing.assert_allclose(auxiliary_attributes_loss(logits, asked), expected, rtol=1e-5)


def test_extremes():
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]])
    labels = jnp.array([1, 1, 0])
    attributes = jnp.array([[0, 0], [0, 1], [1, 0]])
    for loss_of, asked, expected in (
        (auxiliary_classifier_loss, labels, [2e4, 0, LOG2]),
        (auxiliary_attributes_loss, attributes, [1e4, 0, 1e4]),
    ):
        loss, pullback = jax.vjp(lambda x, f=loss_of, asked=asked: f(x, asked), logits)
        np.testing.assert_allclose(loss, expected)
        assert jnp.isfinite(pullback(jnp.ones(3))[0]).all()
        assert loss_of(logits.astype(jnp.bfloat16), asked).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auxiliary_classifier_loss(CLASSES, LABELS[:2]), "labels must be integers"),
        (lambda: auxiliary_classifier_loss(CLASSES, jnp.zeros(3)), "labels .*float32"),
        (lambda: auxiliary_classifier_loss(jnp.zeros(3), LABELS), r"class_logits .*\(3,\)"),
        (lambda: auxiliary_attributes_loss(CLASSES, LABELS), r"of shape \(3, 5\)"),
        (lambda: auxiliary_attributes_loss(CLASSES, CLASSES), "attributes .*float32"),
        (lambda: auxiliary_attributes_loss(jnp.zeros(3), LABELS), r"class_logits .*\(3,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
