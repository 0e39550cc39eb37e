"""pytorch-fid's Inception and ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.convert import pytorch_fid
from jaxgen.models.inception import InceptionV3


@pytest.fixture(scope="module")
def params():
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    shapes = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.random(s.shape, np.float32), shapes)


def test_there_and_back(params):
    arrays = pytorch_fid.from_jaxgen(params)
    assert arrays["Mixed_5b.branch5x5_2.conv.weight"].shape == (64, 48, 5, 5)
    assert arrays["fc.weight"].shape == (1008, 2048)
    back = pytorch_fid.to_jaxgen(arrays)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, params)


def test_the_arrays_are_those_of_the_pytorch_network(params):
    torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
    from experiments.benchmarks.extractor_reference import TorchInception

    arrays = pytorch_fid.from_jaxgen(params)
    with torch.device("meta"):  # shapes alone
        expected = TorchInception().state_dict()
    counted = [name for name in expected if name.endswith("num_batches_tracked")]
    assert set(arrays) == set(expected) - set(counted)
    assert all(array.shape == expected[name].shape for name, array in arrays.items())


def test_another_network_is_refused(params):
    with pytest.raises(ValueError, match=r"params must be those of InceptionV3, and have x\.scale"):
        pytorch_fid.from_jaxgen({**params, "x": {"scale": np.ones(2)}})
    with pytest.raises(ValueError, match="params holds the weights of another network"):
        pytorch_fid.from_jaxgen({k: v for k, v in params.items() if k != "fc"})
