"""The U-Nets of score-based models: the papers' sizes, and equal to an independent definition."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.models.blocks.layers import fourier_features, timestep_embedding
from jaxgen.models.blocks.resample import BINOMIAL
from jaxgen.models.score_unet import (
    ScoreUNet,
    SmoothDownsample,
    adm,
    ddpmpp,
    edm_ddpmpp,
    edm_ncsnpp,
    ncsnpp,
    ncsnpp_256,
)

SMALL: dict[str, Any] = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
}
NETWORKS = {
    "ncsnpp": ncsnpp(**SMALL),
    "ncsnpp_256": ncsnpp_256(**SMALL),
    "ddpmpp": ddpmpp(**SMALL),
    "edm_ncsnpp": edm_ncsnpp(**SMALL, augmentation_labels=9),
    "edm_ddpmpp": edm_ddpmpp(**SMALL, augmentation_labels=9),
    "adm": adm(**SMALL, head_width=4),
}


def inputs(size=8, channels=3, batch=2):
    x = np.random.default_rng(5).normal(size=(batch, size, size, channels))
    return jnp.asarray(x, jnp.float32), jnp.linspace(-1.3, 0.4, batch)


def one_hot(*labels, num_classes=3):
    return Condition(jnp.asarray(np.eye(num_classes, dtype=np.float32)[list(labels)]))


def shapes_of(model, *args):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, train=False))["params"]


def randomized(model, *args):
    """Random parameters: at initialization the residual branches and the output are near zero."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return {"params": jax.tree.map(draw, shapes_of(model, *args))}


@pytest.mark.parametrize(
    ("model", "size", "classes", "count"),
    [  # as the authors' own code counts them, without the frozen frequencies of the time
        (ncsnpp(), 32, 0, 62_758_787),
        (ncsnpp(num_res_blocks=8), 32, 0, 107_586_947),
        (ncsnpp_256(), 256, 0, 65_574_421),  # as diffusers counts its network of this kind
        (ddpmpp(), 32, 0, 61_804_419),
        (ddpmpp(num_res_blocks=8), 32, 0, 106_632_579),
        (edm_ncsnpp(augmentation_labels=9), 32, 0, 56_397_827),
        (edm_ddpmpp(augmentation_labels=9), 32, 0, 55_733_891),
        (edm_ddpmpp(augmentation_labels=9), 32, 10, 55_735_299),
        (edm_ddpmpp(augmentation_labels=9, multipliers=(1, 2, 2, 2)), 64, 0, 61_805_571),
        (adm(), 64, 1000, 295_899_267),
    ],
)
def test_the_papers_sizes(model, size, classes, count):
    condition = [Condition(jnp.zeros((1, classes)))] if classes else []
    shapes = shapes_of(model, jnp.zeros((1, size, size, 3)), jnp.zeros(1), *condition)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_where_attention_stands():
    x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    of = lambda model: {name for name in shapes_of(model, x, t) if "attention" in name}  # noqa: E731
    middle = {"mid_attention"}
    assert of(ddpmpp(channels=8, num_res_blocks=2)) == middle | {
        "down1_attention0", "down1_attention1", "up1_attention2",
    }  # fmt: skip
    every = adm(channels=8, num_res_blocks=2, attention_resolutions=(4,), head_width=4)
    assert of(every) == middle | {
        *(f"down3_attention{i}" for i in range(2)), *(f"up3_attention{i}" for i in range(3)),
    }  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes(name):
    model = NETWORKS[name].clone(out_channels=4)
    y = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), jnp.zeros((2, 8, 12, 1)), jnp.zeros(2, int), train=False
        )[0]
    )
    assert (y.shape, y.dtype) == ((2, 8, 12, 4), jnp.float32)


@pytest.mark.parametrize("name", [pytest.param("edm_ncsnpp", marks=pytest.mark.slow), "adm"])
def test_starts_near_zero_and_what_it_is_told_moves_the_output(name):
    model, (x, t), labels = NETWORKS[name], inputs(), one_hot(0, 2)
    start = jit(lambda key: model.init_with_output(key, x, t, labels, train=False)[0])
    bound = 0 if name == "adm" else 1e-3
    assert np.abs(start(jax.random.key(0))).max() <= bound

    params = randomized(model, x, t, labels)
    labelled = model.augmentation_labels > 0

    @jit
    def call(t, vector, augmentation):
        told = [augmentation] if labelled else []
        return model.apply(params, x, t, Condition(vector), *told, train=False)

    labels, none = labels.vector, jnp.zeros((2, 9))
    y = call(t, labels, none)
    assert np.all(np.any(y != call(t + 0.1, labels, none), axis=(1, 2, 3)))
    changed = np.any(np.asarray(y != call(t, labels.at[0].set(0), none)), axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, [True, False])
    if labelled:
        changed = np.any(np.asarray(y != call(t, labels, none.at[1, 3].set(1))), axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, [False, True])
        absent = jit(lambda: model.apply(params, x, t, Condition(labels), train=False))()
        np.testing.assert_allclose(absent, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("ncsnpp", marks=pytest.mark.slow), "adm"])
def test_all_parameters_get_finite_gradients_and_dropout_acts(name):
    model, (x, t), labels = NETWORKS[name], inputs(), one_hot(0, 2)
    params = randomized(model, x, t, labels)

    @jit
    def grad(params, key):
        def loss(params):
            y = model.apply(params, x, t, labels, train=True, rngs={"dropout": key})
            return jnp.sum((y - x) ** 2)

        return jax.value_and_grad(loss)(params)

    value, grads = grad(params, jax.random.key(1))
    assert value == grad(params, jax.random.key(1))[0] != grad(params, jax.random.key(2))[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        where = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), where
        # A bias on the keys shifts all of a query's logits alike, which the softmax ignores.
        assert np.any(np.asarray(leaf)) or where.endswith("['key']['bias']"), where


def test_smooth_downsample_filters_then_convolves():
    """Equal to the convolution at every place, filtered and halved afterwards."""
    x = inputs()[0]
    layer = SmoothDownsample(2)
    params = randomized_layer(layer, x)
    kernel = np.asarray(params["params"]["conv"]["kernel"], np.float64)
    taps = np.outer(BINOMIAL, BINOMIAL) / 64
    both = np.zeros((6, 6, 3, 2))
    for i in range(4):
        for j in range(4):
            both[i : i + 3, j : j + 3] += taps[i, j] * kernel
    padded = np.pad(np.asarray(x, np.float64), [(0, 0), (2, 2), (2, 2), (0, 0)])
    expected = np.zeros((2, 4, 4, 2))
    for i in range(4):
        for j in range(4):
            window = padded[:, 2 * i : 2 * i + 6, 2 * j : 2 * j + 6]
            expected[:, i, j] = np.einsum("bhwc,hwcf->bf", window, both)
    expected += np.asarray(params["params"]["conv"]["bias"])
    np.testing.assert_allclose(jit(layer.apply)(params, x), expected, rtol=0, atol=1e-5)


def randomized_layer(layer, x):
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 7}, "channels must be even and at least 4, got 7"),
        ({"multipliers": ()}, "multipliers must be one or more positives"),
        ({"num_res_blocks": 0}, "num_res_blocks must be positive, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"out_channels": 0}, "out_channels must be positive, got 0"),
        ({"augmentation_labels": -1}, "augmentation_labels must be at least 0, got -1"),
        ({"head_width": 0}, "head_width must be positive, got 0"),
        ({"input_pyramid": True, "skip_pyramids": True}, "must not both be True"),
    ],
)
def test_refuses_bad_fields_at_once(fields, message):
    for network in (ncsnpp, ddpmpp, edm_ncsnpp, edm_ddpmpp, adm):
        with pytest.raises(ValueError, match=message):
            network(**fields)


@pytest.mark.parametrize(
    ("fields", "size", "arguments", "message"),
    [
        ({"multipliers": (1, 1, 1)}, (10, 12), (), "10x12 cannot be halved 2 times"),
        ({}, (7, 8), (), "7x8 .* must be multiples of 2"),
        ({"head_width": 3}, (8, 8), (), "head_width must divide the 16 channels, got 3"),
        ({}, (8, 8), (one_hot(0),), "condition must be of 2 examples, got 1"),
        ({}, (8, 8), (None, jnp.zeros((2, 9))), "augmentation_labels is 0"),
        (
            {"augmentation_labels": 9},
            (8, 8),
            (None, jnp.zeros((2, 8))),
            r"augmentation must have shape \(2, 9\), got \(2, 8\)",
        ),
    ],
)
def test_refuses_bad_inputs_while_tracing(fields, size, arguments, message):
    model = ScoreUNet(**{**SMALL, **fields})
    with pytest.raises(ValueError, match=message):
        shapes_of(model, jnp.zeros((2, *size, 3)), jnp.zeros(2), *arguments)


class Reference:
    """The networks by their equations, in PyTorch on [batch, channels, height, width].

    Our parameters are read by the names of their layers; everything else is its own.
    """

    def __init__(self, params, model, frequencies):
        import torch
        import torch.nn.functional as functional

        self.torch, self.f, self.model, self.frequencies = torch, functional, model, frequencies
        self.params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), params)
        taps = torch.tensor([float(tap) for tap in model.taps])
        self.filter = torch.outer(taps, taps) / taps.sum() ** 2

    def conv(self, p, x, **options):
        return self.f.conv2d(x, p["kernel"].permute(3, 2, 0, 1), p["bias"], **options)

    def norm(self, p, x):
        groups = max(1, min(32, x.shape[1] // 4))
        return self.f.group_norm(x, groups, p["scale"], p["bias"], self.model.style.epsilon)

    def resample(self, x, direction):
        channels, pad = x.shape[1], len(self.filter) // 2 - 1
        kernel = self.filter.expand(channels, 1, -1, -1)
        if direction == "up":
            form = self.f.conv_transpose2d
            return form(x, 4 * kernel, stride=2, padding=pad, groups=channels)
        return self.f.conv2d(x, kernel, stride=2, padding=pad, groups=channels)

    def block(self, name, x, e, direction=None):
        p, style = self.params[name], self.model.style
        h = self.f.silu(self.norm(p["norm1"], x))
        if direction:
            h, x = self.resample(h, direction), self.resample(x, direction)
        h = self.conv(p["conv1"], h, padding=1)
        told = (e @ p["time"]["kernel"] + p["time"]["bias"])[:, :, None, None]
        if style.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm(p["norm2"], h) * (1 + scale) + shift
        else:
            h = self.norm(p["norm2"], h + told)
        h = self.conv(p["conv2"], self.f.silu(h), padding=1)
        if "shortcut" in p:
            x = self.conv(p["shortcut"], x)
        return (x + h) * style.residual_scale

    def attention(self, name, x):
        if name not in self.params:
            return x
        p, (batch, channels, height, width) = self.params[name], x.shape
        heads = channels // (self.model.head_width or channels)
        h = self.norm(p["norm"], x).flatten(2).transpose(1, 2)
        q, k, v = (
            (h @ p[part]["kernel"] + p[part]["bias"]).unflatten(2, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        h = self.f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h @ p["out"]["kernel"] + p["out"]["bias"]
        h = h.transpose(1, 2).reshape(batch, channels, height, width)
        return (x + h) * self.model.style.residual_scale

    def embed(self, t, vector, augmentation):
        p, torch = self.params, self.torch
        angles = t[:, None] * self.frequencies[None]
        h = torch.cat([angles.sin(), angles.cos()], dim=1)
        if augmentation is not None:
            h = h + augmentation @ p["augment"]["kernel"]
        if self.model.condition_first:
            told = math.sqrt(vector.shape[1]) * vector
            h = h + told @ p["condition"]["kernel"] + p["condition"]["bias"]
        h = self.f.silu(h @ p["time1"]["kernel"] + p["time1"]["bias"])
        h = h @ p["time2"]["kernel"] + p["time2"]["bias"]
        if not self.model.condition_first:
            h = h + vector @ p["condition"]["kernel"]
        return self.f.silu(h)

    def __call__(self, x, t, vector, augmentation=None):
        model, p = self.model, self.params
        e = self.embed(t, vector, augmentation)
        pyramid, h = x, self.conv(p["conv_in"], x, padding=1)
        kept, last = [h], len(model.multipliers) - 1
        for level in range(last + 1):
            for i in range(model.num_res_blocks):
                h = self.block(f"down{level}_block{i}", h, e)
                h = self.attention(f"down{level}_attention{i}", h)
                kept.append(h)
            if level < last:
                h = self.block(f"down{level}_downsample", h, e, "down")
                if model.input_pyramid:  # convolved at every place, then filtered and halved
                    reach = len(self.filter) // 2
                    full = self.conv(p[f"down{level}_pyramid"]["conv"], pyramid, padding=reach)
                    kernel = self.filter.expand(full.shape[1], 1, -1, -1)
                    bias = p[f"down{level}_pyramid"]["conv"]["bias"][:, None, None]
                    full = self.f.conv2d(full - bias, kernel, stride=2, groups=full.shape[1]) + bias
                    h = pyramid = (h + full) / math.sqrt(2)
                if model.skip_pyramids:
                    pyramid = self.resample(pyramid, "down")
                    h = h + self.conv(p[f"in{level}"], pyramid)
                kept.append(h)
        h = self.attention("mid_attention", self.block("mid_block0", h, e))
        h = self.block("mid_block1", h, e)
        for level in reversed(range(last + 1)):
            for i in range(model.num_res_blocks + 1):
                h = self.block(f"up{level}_block{i}", self.torch.cat([h, kept.pop()], 1), e)
                h = self.attention(f"up{level}_attention{i}", h)
            if model.skip_pyramids:
                part = self.output(f"out{level}", h)
                output = part if level == last else self.resample(output, "up") + part
            if level > 0:
                h = self.block(f"up{level}_upsample", h, e, "up")
        return output if model.skip_pyramids else self.output("out", h)

    def output(self, name, h):
        h = self.f.silu(self.norm(self.params[f"norm_{name}"], h))
        return self.conv(self.params[f"conv_{name}"], h, padding=1)


@pytest.mark.parametrize("name", ["ncsnpp", "ncsnpp_256", "edm_ddpmpp", "adm"])
def test_equals_an_independent_definition(name):
    torch = pytest.importorskip("torch")
    model, (x, t), condition = NETWORKS[name], inputs(), one_hot(1, 0)
    augmentation = np.random.default_rng(3).normal(size=(2, 9)).astype(np.float32)
    told = [jnp.asarray(augmentation)] if model.augmentation_labels else []
    params = randomized(model, x, t, condition, *told)
    half = model.channels // 2
    if name.startswith("ncsnpp"):
        features = model.time_features(jnp.asarray([1e-6]), model.channels)
        frequencies = np.asarray(features)[0, : model.channels] / 1e-6  # sin(a) = a
    else:
        frequencies = 10_000.0 ** -(np.arange(half) / (half if name == "adm" else half - 1))
    frequencies = torch.tensor(frequencies.astype(np.float32))

    y = jit(lambda p: model.apply(p, x, t, condition, *told, train=False))(params)
    reference = Reference(params["params"], model, frequencies)
    of_torch = [torch.tensor(np.asarray(a)) for a in (t, condition.vector, *told)]
    expected = reference(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2), *of_torch)
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("features", [timestep_embedding, fourier_features])
def test_two_times_are_embedded_side_by_side(features):
    model = edm_ddpmpp(channels=8, multipliers=(1,), num_res_blocks=1, time_features=features)
    x, t = jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 2))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, t, train=False))["params"]
    width = features(t[:, 0], 8).shape[-1]
    assert params["time1"]["kernel"].shape == (2 * width, 32)
