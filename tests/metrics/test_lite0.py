import sys

import jax
import numpy as np
import pytest

from jaxgen.metrics import lite0 as module
from jaxgen.metrics.features import extract
from jaxgen.metrics.lite0 import lite0_extractor
from jaxgen.metrics.torch_weights import WeightsError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def reference():
    from experiments.benchmarks.extractor_reference import TorchLite0, randomized

    return randomized(TorchLite0())


@pytest.fixture(scope="module")
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(reference.state_dict(), path)
    return path


@pytest.mark.slow
def test_the_network_is_pytorchs(reference, weights):
    extractor = lite0_extractor(weights, allow_other_weights=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 1), dtype=np.uint8)
    outputs = extract(extractor, images, outputs=extractor.outputs, batch_size=2)
    sized = jax.image.resize(images.astype(np.float32), (2, 224, 224, 1), "cubic").repeat(3, -1)
    with torch.no_grad():
        expected = reference(torch.tensor((np.asarray(sized) - 127) / 128).permute(0, 3, 1, 2))
    assert outputs["features"].shape == (2, 1280)
    assert outputs["logits"].shape == (2, 1000)
    for name, tensor in expected.items():
        np.testing.assert_allclose(outputs[name], tensor.numpy(), rtol=1e-4, atol=1e-4)
        assert tensor.std() > 0.1  # the comparison is of something


def test_other_weights_have_another_name(weights):
    with pytest.raises(
        WeightsError, match=r"random\.pth is truncated or not the file efficientnet"
    ):
        lite0_extractor(weights)
    extractor = lite0_extractor(weights, allow_other_weights=True)
    assert extractor.suffix == f"lite0-{extractor.checksum[:8]}"


def test_the_package_holds_the_expected_file():
    pytest.importorskip(module.PACKAGE)
    extractor = lite0_extractor()
    assert extractor.suffix == "lite0"
    assert extractor.checksum == module.CHECKSUM


def test_bad_input(weights, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no file of EfficientNet-Lite0 weights .*nowhere"):
        lite0_extractor(tmp_path / "nowhere")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"cut\.pth is truncated, broken"):
        lite0_extractor(cut, allow_other_weights=True)
    monkeypatch.setitem(sys.modules, module.PACKAGE, None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'jaxgen\[lite0\]'"):
        lite0_extractor()
