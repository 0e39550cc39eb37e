"""diffusers' KL autoencoder and ours."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.convert import diffusers_autoencoder as kl
from jaxgen.convert.tables import flatten_dict, unflatten_dict
from jaxgen.models.autoencoder import Decoder, Encoder, Sizes

SMALL = Sizes((1, 2), 3, channels=8, num_res_blocks=1)
CONFIG: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [128, 128],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 8,
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
}


def randomized(sizes, image_channels=3):
    rng = np.random.default_rng(0)
    flat = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in kl._shapes(sizes, image_channels).items()
    }
    return unflatten_dict(flat, sep="/")


def test_parity_with_diffusers():
    torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra parity")
    torch.manual_seed(0)
    net = diffusers.AutoencoderKL(**CONFIG).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    arrays = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    sizes, image_channels = kl.from_config(dict(net.config))
    params = kl.to_jaxgen(arrays, sizes, image_channels)

    rng = np.random.default_rng(1)
    x, z = (rng.normal(size=s).astype(np.float32) for s in ((2, 8, 8, 3), (2, 4, 4, 4)))
    first = lambda a: torch.tensor(a).permute(0, 3, 1, 2)  # noqa: E731
    with torch.no_grad():
        moments, images = net.encode(first(x)).latent_dist.parameters, net.decode(first(z)).sample
    encode, decode = Encoder(sizes, moments=2), Decoder(sizes)
    ours = (
        jit(lambda p: encode.apply({"params": p}, jnp.asarray(x)))(params["encoder"]),
        jit(lambda p: decode.apply({"params": p}, jnp.asarray(z)))(params["decoder"]),
    )
    for a, b in zip(ours, (moments, images), strict=True):
        b = b.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())

    other = diffusers.AutoencoderKL(**kl.to_config(sizes, image_channels))
    back = kl.from_jaxgen({**params, "discriminator": {}}, sizes, image_channels)
    other.load_state_dict({name: torch.tensor(array) for name, array in back.items()})
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("old_names", [False, True])
def test_there_and_back(old_names):
    params = randomized(SMALL)
    state = kl.from_jaxgen(params, SMALL, old_names=old_names)
    assert ("encoder.mid_block.attentions.0.query.weight" in state) == old_names
    np.testing.assert_array_equal(
        state["decoder.up_blocks.0.resnets.1.conv1.bias"],
        params["decoder"]["trunk"]["up1_block1"]["conv1"]["bias"],
    )
    back = flatten_dict(kl.to_jaxgen(state, SMALL), sep="/")
    expected = flatten_dict(params, sep="/")
    assert back.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(back[name], array)


def test_every_array_is_used_once():
    state = kl.from_jaxgen(randomized(SMALL), SMALL)
    del state["quant_conv.bias"]
    with pytest.raises(ValueError, match=r"AutoencoderKL are of another .* missing quant_conv\.bi"):
        kl.to_jaxgen(state, SMALL)
    attentive = SMALL._replace(attention_factors=(2,))
    with pytest.raises(ValueError, match="has no place for our encoder/down1_attention0/"):
        kl.from_jaxgen(randomized(attentive), attentive)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_quant_conv": False}, "use_quant_conv must be True for our networks, got False"),
        ({"norm_num_groups": 16}, "norm_num_groups must be 32"),
        ({"out_channels": 1}, "out_channels must be 3"),
        ({"block_out_channels": [128, 192]}, "must be multiples of the first"),
        ({"block_out_channels": [64, 64]}, "channels must be a multiple of 128, .* got 64"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types must be"),
    ],
)
def test_configs_that_ours_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        kl.from_config({**CONFIG, **changes})


def test_sizes_that_theirs_cannot_be():
    with pytest.raises(ValueError, match=r"attention_factors must be \(\), got \(2,\)"):
        kl.to_config(SMALL._replace(attention_factors=(2,)))
    with pytest.raises(ValueError, match="channels must be a multiple of 128"):
        kl.to_config(SMALL)
