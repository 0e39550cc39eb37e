import io
import urllib.error

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.metrics import inception as module
from jaxgen.metrics.features import extract
from jaxgen.metrics.inception import inception_extractor, resize_bilinear
from jaxgen.metrics.torch_weights import WeightsError
from jaxgen.models.inception import average_pool, max_pool

torch = pytest.importorskip("torch")
F = torch.nn.functional


def channels_first(x):
    return torch.tensor(np.asarray(x, np.float32)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def reference():
    from experiments.benchmarks.extractor_reference import TorchInception, randomized

    return randomized(TorchInception())


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(reference.state_dict(), path)
    return path


def test_the_network_is_pytorchs(reference, weights):
    from experiments.benchmarks.extractor_reference import resize_tensorflow

    extractor = inception_extractor(weights, allow_other_weights=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 52, 3), dtype=np.uint8)
    outputs = extract(extractor, images, outputs=extractor.outputs, batch_size=2)
    with torch.no_grad():
        expected = reference((resize_tensorflow(channels_first(images)) - 128) / 128)
    assert outputs["features"].shape == (2, 2048)
    assert outputs["logits"].shape == (2, 1008)
    assert outputs["spatial"].shape == (2, 2023)
    for name, tensor in expected.items():
        np.testing.assert_allclose(outputs[name], tensor.numpy(), rtol=1e-4, atol=1e-4)
        assert tensor.std() > 0.3  # the comparison is of something


@pytest.mark.parametrize("shape", [(32, 32), (1, 7), (299, 299), (400, 310)])
@pytest.mark.parametrize("resizer", ["tensorflow", "pytorch"])
def test_resizing_is_theirs(resizer, shape):
    from experiments.benchmarks.extractor_reference import resize_tensorflow

    x = np.random.default_rng(0).uniform(0, 255, (2, *shape, 3)).astype(np.float32)
    if resizer == "tensorflow":
        expected = resize_tensorflow(channels_first(x))
    else:
        expected = F.interpolate(channels_first(x), size=(299, 299), mode="bilinear")
    resized = channels_first(resize_bilinear(jnp.asarray(x), resizer))
    np.testing.assert_allclose(resized, expected, atol=2e-2 if max(shape) > 299 else 1e-3)


def test_resizing_of_a_step():
    """TensorFlow's pixel i lies at i * scale, PyTorch's at (i + 0.5) * scale - 0.5."""
    x = jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1)
    rows = {r: resize_bilinear(x, r, 4)[0, 0, :, 0] for r in ("tensorflow", "pytorch")}
    np.testing.assert_allclose(rows["tensorflow"], [0, 2, 4, 4])
    np.testing.assert_allclose(rows["pytorch"], [0, 1, 3, 4])


def test_each_resizer_has_its_range(monkeypatch):
    monkeypatch.setattr(module, "_run", lambda params, x: {"features": x})
    bytes_ = np.asarray([0, 255], np.uint8).reshape(2, 1, 1, 1) * np.ones((1, 5, 5, 1), np.uint8)
    for resizer, ends in (("tensorflow", (-1, 127 / 128)), ("pytorch", (-1, 1))):
        inputs = module._APPLY[resizer](None, jnp.asarray(bytes_))["features"]
        assert inputs.shape == (2, 299, 299, 3)  # gray in every channel
        for image, end in zip(inputs, ends, strict=True):
            np.testing.assert_allclose(image, end, rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (17, 35), (6, 5)])
def test_pools_are_pytorchs(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    t = channels_first(x)
    pairs = [
        (max_pool(jnp.asarray(x), 1), F.max_pool2d(t, 3, 1, 1)),
        (max_pool(jnp.asarray(x), 2), F.max_pool2d(t, 3, 2)),
        (average_pool(jnp.asarray(x)), F.avg_pool2d(t, 3, 1, 1, count_include_pad=False)),
    ]
    for actual, expected in pairs:
        np.testing.assert_allclose(channels_first(actual), expected, rtol=1e-5, atol=1e-6)


def test_other_weights_make_no_fid(weights):
    with pytest.raises(
        WeightsError, match=r"random\.pth is truncated or not the file pt_inception"
    ):
        inception_extractor(weights)
    extractor = inception_extractor(weights, resizer="pytorch", allow_other_weights=True)
    assert extractor.suffix == f"inception-{extractor.checksum[:8]}"
    assert extractor.resizer != module.RESIZERS["tensorflow"]


def test_bad_input(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of Inception weights .*nowhere"):
        inception_extractor(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="resizer must be one of .* got 'cubic'"):
        inception_extractor(weights, resizer="cubic")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[: -(2**20)])
    with pytest.raises(WeightsError, match=r"cut\.pth is truncated, broken"):
        inception_extractor(cut, allow_other_weights=True)
    torch.save({"fc.weight": torch.zeros(2)}, cut)
    with pytest.raises(WeightsError, match=r"cut\.pth holds the weights of another network"):
        inception_extractor(cut, allow_other_weights=True)
    extractor = inception_extractor(weights, allow_other_weights=True)
    with pytest.raises(ValueError, match=r"gray or RGB, .* got \(8, 8, 4\)"):
        extract(extractor, np.zeros((2, 8, 8, 4), np.uint8))


def test_download(tmp_path, monkeypatch):
    """Kept whole or not at all; without a network the user learns where to put the file."""
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / module.FILE

    def cut_off(url, timeout):
        return io.BytesIO(b"half a file")

    def no_network(url, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", cut_off)
    with pytest.raises(WeightsError, match="cut off or is another file"):
        inception_extractor()
    assert list(place.parent.iterdir()) == []
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(OSError, match=f"no route.* put it at .*{module.FILE}"):
        inception_extractor()
    place.write_bytes(b"a stranger's file")
    with pytest.raises(WeightsError, match="should begin with 6726825d"):
        inception_extractor()
