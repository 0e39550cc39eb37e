"""Layers of GANs beside PyTorch's, and at values known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.blocks.gan_layers import (
    ConditionalBatchNorm,
    NonLocalBlock,
    SpectralConv,
    SpectralDense,
    VerdictHead,
    minibatch_stddev,
)
from jaxgen.models.conv.layers import ConvTranspose


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def test_spectral_conv_equals_torch(key):
    """Three updates and one call in evaluation: weights, vectors, outputs and gradients."""
    torch = pytest.importorskip("torch")
    x = jax.random.normal(key, (2, 6, 6, 3))
    layer = SpectralConv(5, 3)
    variables = layer.init(jax.random.key(1), x, train=True)
    theirs = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 5, 3, padding=1))
    with torch.no_grad():
        kernel = np.asarray(variables["params"]["kernel"]).transpose(3, 2, 0, 1).copy()
        theirs.weight_orig.copy_(torch.from_numpy(kernel))
        theirs.weight_u.copy_(torch.from_numpy(np.array(variables["spectral"]["u"])))
        theirs.bias.zero_()
    tx = torch.from_numpy(nchw(x).copy())
    for _ in range(3):

        def loss(params, state):
            y, new = layer.apply({"params": params, **state}, x, train=True, mutable=["spectral"])
            return jnp.sum(jnp.sin(y)), (y, new)

        state = {"spectral": variables["spectral"]}
        gradient, (y, new) = jax.grad(loss, has_aux=True)(variables["params"], state)
        variables = {**variables, **new}
        theirs.zero_grad()
        ty = theirs(tx)
        ty.sin().sum().backward()
        close(nchw(y), ty.detach())
        close(variables["spectral"]["u"], theirs.weight_u)
        close(np.asarray(gradient["kernel"]).transpose(3, 2, 0, 1), theirs.weight_orig.grad, 1e-4)


def test_spectral_state_moves_only_in_training(key):
    x = jax.random.normal(key, (4, 7))
    layer = SpectralDense(3)
    variables = layer.init(key, x, train=True)
    _, same = layer.apply(variables, x, train=False, mutable=["spectral"])
    _, moved = layer.apply(variables, x, train=True, mutable=["spectral"])
    np.testing.assert_array_equal(same["spectral"]["u"], variables["spectral"]["u"])
    assert not np.allclose(moved["spectral"]["u"], variables["spectral"]["u"])


def test_spectral_norm_becomes_one(key):
    x = jnp.eye(7)
    layer = SpectralDense(5, use_bias=False)
    variables = layer.init(key, x, train=True)
    for _ in range(50):
        y, state = layer.apply(variables, x, train=True, mutable=["spectral"])
        variables = {**variables, **state}
    assert np.linalg.svd(y)[1][0] == pytest.approx(1.0, rel=1e-4)


def test_batch_norm_far_from_zero(key):
    """E[x^2] - E[x]^2 gives a deviation of 31 in the place of 1."""
    x = 1000 + 0.1 * jax.random.normal(key, (64, 8, 8, 3))
    layer = ConditionalBatchNorm()
    variables = layer.init(key, x, None, train=True)
    y, new = layer.apply(variables, x, None, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), 1, atol=0.01)
    variance = new["batch_stats"]["norm"]["var"]
    np.testing.assert_allclose(variance, 0.9 + 0.1 * 0.01, rtol=1e-4)


def test_conditional_batch_norm_equals_torch(key):
    torch = pytest.importorskip("torch")
    x = 2 + 3 * jax.random.normal(key, (6, 4, 4, 5))
    label = np.array([0, 1, 2, 0, 1, 1])
    layer = ConditionalBatchNorm()
    e = jax.nn.one_hot(label, 3)
    variables = layer.init(key, x, e, train=True)
    table = jax.random.normal(jax.random.key(2), (3, 10))
    params = {"condition": {"kernel": table}}
    state = {"batch_stats": variables["batch_stats"]}
    norm = torch.nn.BatchNorm2d(5, affine=False)
    gain, bias = (torch.from_numpy(np.array(t)) for t in jnp.split(table, 2, axis=1))

    def expected():
        y = norm(torch.from_numpy(nchw(x).copy()))
        return y * (1 + gain[label])[:, :, None, None] + bias[label][:, :, None, None]

    y, new = layer.apply(
        {"params": params, **state},
        x,
        e,
        train=True,
        mutable=["batch_stats"],
    )
    close(nchw(y), expected())
    close(new["batch_stats"]["norm"]["mean"], norm.running_mean)
    # PyTorch keeps the unbiased variance of the 96 values, Flax (and the papers) the biased one.
    batch_variance = np.var(np.asarray(x), axis=(0, 1, 2))
    close(new["batch_stats"]["norm"]["var"], 0.9 + 0.1 * batch_variance, 1e-4)
    norm.eval()
    norm.running_var = torch.from_numpy(np.array(new["batch_stats"]["norm"]["var"]))
    y = layer.apply({"params": params, **new}, x, e, train=False)
    close(nchw(y), expected())


def test_transposed_convolution_equals_torch(key):
    """DCGAN's layer, 4x4 with stride 2: as ConvTranspose2d(..., 4, 2, 1), kernel flipped."""
    torch = pytest.importorskip("torch")
    x = jax.random.normal(key, (2, 4, 4, 6))
    layer = ConvTranspose(5, (4, 4), strides=(2, 2))
    params = layer.init(key, x)["params"]
    theirs = torch.nn.ConvTranspose2d(6, 5, 4, 2, 1)
    with torch.no_grad():
        kernel = np.asarray(params["kernel"])[::-1, ::-1].transpose(2, 3, 0, 1).copy()
        theirs.weight.copy_(torch.from_numpy(kernel))
        theirs.bias.zero_()
    close(
        nchw(layer.apply({"params": params}, x)), theirs(torch.from_numpy(nchw(x).copy())).detach()
    )


@pytest.mark.parametrize(("group_size", "num_features"), [(4, 1), (2, 3), (8, 2)])
def test_minibatch_stddev_equals_torch(key, group_size, num_features):
    """StyleGAN2's layer, written in PyTorch's own terms."""
    torch = pytest.importorskip("torch")
    x = jax.random.normal(key, (8, 3, 3, 6))
    t = torch.from_numpy(nchw(x).copy())
    y = t.reshape(group_size, -1, num_features, 6 // num_features, 3, 3)
    deviation = (y.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=[2, 3, 4])
    appended = deviation[:, :, None, None].repeat(group_size, 1, 3, 3)
    expected = torch.cat([t, appended], dim=1)
    close(nchw(minibatch_stddev(x, group_size, num_features)), expected)


def test_minibatch_stddev_of_equal_images():
    y = minibatch_stddev(jnp.ones((4, 2, 2, 3)))
    close(y[..., 3], np.full((4, 2, 2), 1e-4), 1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 3}, "divide the batch of 8"),
        ({"group_size": 16}, "divide the batch of 8"),
        ({"group_size": 0}, "at least 1"),
        ({"num_features": 4}, "divide the 6 channels"),
    ],
)
def test_minibatch_stddev_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        minibatch_stddev(jnp.zeros((8, 2, 2, 6)), **options)


def test_attention_begins_as_the_identity_and_looks_everywhere(key):
    x = jax.random.normal(key, (2, 4, 4, 8))
    layer = NonLocalBlock()
    variables = layer.init(key, x, train=False)
    np.testing.assert_array_equal(layer.apply(variables, x, train=False), x)
    params = {**variables["params"], "gamma": jnp.float32(1.0)}

    def corner(x):
        return layer.apply({**variables, "params": params}, x, train=False)[0, 0, 0].sum()

    seen = jnp.abs(jax.grad(corner)(x)).sum(axis=(0, 3))
    assert (seen > 0).sum() > 12  # all but those that the pooling of keys and values left out
    with pytest.raises(ValueError, match="even sides"):
        layer.init(key, x[:, :3], train=False)


def test_projection(key):
    """w h + b + <V e, h>, and a classifier beside it."""
    h, e = jax.random.normal(key, (3, 4)), jax.nn.one_hot(jnp.array([0, 1, 1]), 2)
    head = VerdictHead(num_classes=2, normalize=False)
    variables = head.init(key, h, e, train=False)
    p = variables["params"]
    expected = h @ p["out"]["kernel"][:, 0] + jnp.sum((e @ p["projection"]["kernel"]) * h, axis=1)
    verdict = head.apply(variables, h, e, train=False)
    close(verdict.logits, expected)
    close(verdict.class_logits, h @ p["classes"]["kernel"])
