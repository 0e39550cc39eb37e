"""The authors' very deep VAE and ours: the numbers of an independent definition, both ways."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import jit

from jaxgen.convert import vdvae
from jaxgen.distributions import likelihoods
from jaxgen.metrics.torch_weights import read_state_dict
from jaxgen.models.hierarchical_vae import VDVAE

torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
F = torch.nn.functional

LIKELIHOOD = likelihoods.mixture_of_logistics(2)
NETWORK = VDVAE(
    "8x2,8d2,4x1,4d4,1x1",
    "1x2,4m1,4x1,8m4",
    width=8,
    num_params=LIKELIHOOD.num_params(3),
    latent_dim=2,
    widths={4: 12, 1: 16},
    max_bias=4,
    mean=-0.1,
    std=0.5,
)


class Theirs:
    """The paper's network on the authors' arrays by their names, [N, C, H, W]."""

    def __init__(self, arrays):
        self.p = {name: torch.tensor(array).double() for name, array in arrays.items()}
        self.used = set()

    def get(self, name):
        self.used.add(name)
        return self.p[name]

    def conv(self, name, x):
        weight = self.get(f"{name}.weight")
        return F.conv2d(x, weight, self.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def inside(self, name, x):
        for i in range(1, 5):
            x = self.conv(f"{name}.c{i}", F.gelu(x))
        return x

    def encoder(self, x):
        h = self.conv("encoder.in_conv", (x - NETWORK.mean) / NETWORK.std)
        seen, number = {8: h}, 0
        for token in NETWORK.encoder_blocks.split(","):
            _, kind, times = re.split(r"([xd])", token)
            for _ in range(int(times) if kind == "x" else 1):
                h = h + self.inside(f"encoder.enc_blocks.{number}", h)
                number += 1
            if kind == "d":
                h = F.avg_pool2d(h, int(times))
            missing = NETWORK.widths.get(h.shape[-1], NETWORK.width) - h.shape[1]
            h = F.pad(h, (0, 0, 0, 0, 0, missing))
            seen[h.shape[-1]] = h
        return seen

    def decoder(self, noise, seen=None):
        """Numbers of a pixel, latents in units of their priors, and the KL of each image."""
        batch = len(noise[0])
        images = {1: self.get("decoder.bias_xs.0"), 4: self.get("decoder.bias_xs.1")}
        images = {r: image.repeat(batch, 1, 1, 1) for r, image in images.items()}
        images[8] = torch.zeros(batch, 8, 8, 8).double()
        number, latents, kl = 0, [], 0
        for token in NETWORK.decoder_blocks.split(","):
            size, kind, other = re.split(r"([xm])", token)
            for _ in range(int(other) if kind == "x" else 1):
                name, h = f"decoder.dec_blocks.{number}", images[int(size)]
                if kind == "m":
                    smaller = images[int(other)][:, : h.shape[1]]
                    h = h + F.interpolate(smaller, scale_factor=int(size) // int(other))
                said = self.inside(f"{name}.prior", h)
                mean, log_std, change = said[:, :2], said[:, 2:4], said[:, 4:]
                prior = torch.distributions.Normal(mean, log_std.exp())
                chosen = prior
                if seen is not None:
                    both = torch.cat([h, seen[int(size)]], dim=1)
                    mean, log_std = self.inside(f"{name}.enc", both).chunk(2, dim=1)
                    chosen = torch.distributions.Normal(mean, log_std.exp())
                z = chosen.mean + chosen.stddev * noise[number]
                divergence = torch.distributions.kl_divergence(chosen, prior)
                kl = kl + divergence.sum(dim=(1, 2, 3))
                latents.append((z - prior.mean) / prior.stddev)
                h = h + change + self.conv(f"{name}.z_proj", z)
                images[int(size)] = h + self.inside(f"{name}.resnet", h)
                number += 1
        h = images[8] * self.get("decoder.gain") + self.get("decoder.bias")
        return self.conv("decoder.out_net.out_conv", h), latents, kl


def nats_per_dim(numbers, x):
    """The mixture of logistics as the authors lay it out, [N, 20, H, W], of images in [-1, 1]."""
    logits, rest = numbers[:, :2], numbers[:, 2:].unflatten(1, (3, 6))
    means, scales, links = rest.split(2, dim=2)  # [N, 3, 2, H, W]
    scales, links = scales.clamp(min=-7).exp(), links.tanh()
    x = x[:, :, None]
    red, green = x[:, 0], x[:, 1]
    shifts = [0 * red, links[:, 0] * red, links[:, 1] * red + links[:, 2] * green]
    centred = x - means - torch.stack(torch.broadcast_tensors(*shifts), dim=1)
    above = torch.where(x > 0.999, 1.0, torch.sigmoid((centred + 1 / 255) / scales))
    below = torch.where(x < -0.999, 0.0, torch.sigmoid((centred - 1 / 255) / scales))
    each = (above - below).log().sum(dim=1) + logits.log_softmax(dim=1)
    return -each.logsumexp(dim=1).sum(dim=(1, 2)) / (3 * 8 * 8)


def to_torch(x):
    return torch.tensor(np.asarray(x)).double().permute(0, 3, 1, 2)


def by_block(tree):
    """Our latents, or noise, block by block as theirs are."""
    return [to_torch(z[:, i]) for z in tree.values() for i in range(z.shape[1])]


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        return (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def given():
    """Bytes in model space, and noise."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.integers(0, 256, (3, 8, 8, 3)) / 127.5 - 1, jnp.float32)
    shapes = NETWORK.latent_shapes
    noise = {r: jnp.asarray(rng.normal(size=(3, *s)), jnp.float32) for r, s in shapes.items()}
    return x, noise


def close(ours, theirs):
    theirs = theirs.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1, np.abs(theirs).max()))


def test_equals_an_independent_definition(params, given):
    """Both halves of the bound, the latents, and what the prior's noise becomes."""
    x, noise = given
    images, num_dims = to_torch(x), x[0].size
    nats = jit(lambda numbers: -LIKELIHOOD.log_prob(numbers, x) / num_dims)
    network = Theirs(vdvae.from_jaxgen(params, NETWORK))
    numbers, latents, kl = network.decoder(by_block(noise), network.encoder(images))
    assert network.used == set(network.p)
    ours = jit(NETWORK.apply)({"params": params}, x, noise)
    close(sum(each.sum(axis=1) for each in ours.kl.values()), kl)
    close(nats(ours.params), nats_per_dim(numbers, images))
    for z, expected in zip(by_block(ours.latents), latents, strict=True):
        close(z, expected)
    drawn, _, _ = network.decoder(by_block(noise))
    assert not torch.allclose(drawn, numbers)
    generate = jit(lambda p, z: NETWORK.apply({"params": p}, z, method="generate"))
    close(nats(generate(params, noise)), nats_per_dim(drawn, images))


def test_there_and_back(params, tmp_path):
    """Through a file as they write it, of one device or of several."""
    arrays = vdvae.from_jaxgen(params, NETWORK)
    assert arrays["encoder.enc_blocks.2.c2.weight"].shape == (2, 2, 3, 3)
    assert arrays["encoder.enc_blocks.5.c2.weight"].shape == (4, 4, 1, 1)
    assert arrays["decoder.dec_blocks.2.enc.c1.weight"].shape == (3, 24, 1, 1)
    assert arrays["decoder.bias_xs.1"].shape == (1, 12, 4, 4)
    assert arrays["decoder.out_net.out_conv.weight"].shape == (20, 8, 1, 1)
    expected = flatten_dict(params, sep="/")
    for prefix in ("", "module."):
        state = {prefix + name: torch.tensor(x) for name, x in arrays.items()}
        torch.save(state, tmp_path / "model.th")
        back = vdvae.to_jaxgen(read_state_dict(tmp_path / "model.th"), NETWORK)
        back = flatten_dict(back, sep="/")
        assert back.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.gain"), r"missing decoder\.gain"),
        (
            lambda s: s.pop("encoder.enc_blocks.3.c4.bias"),
            r"missing encoder\.enc_blocks\.3\.c4\.bias",
        ),
        (
            lambda s: s.update({"encoder.enc_blocks.6.c1.bias": np.zeros(4, np.float32)}),
            r"unknown encoder\.enc_blocks\.6\.c1\.bias",
        ),
        (
            lambda s: s.update({"decoder.bias_xs.0": np.zeros((1, 8, 1, 1), np.float32)}),
            r"decoder\.bias_xs\.0 of VDVAE has shape \[1, 8, 1, 1\], \[1, 16, 1, 1\] is expected",
        ),
    ],
)
def test_what_does_not_fit(params, change, message):
    arrays = vdvae.from_jaxgen(params, NETWORK)
    change(arrays)
    with pytest.raises(ValueError, match=message):
        vdvae.to_jaxgen(arrays, NETWORK)


def test_parameters_that_do_not_fit(params):
    flat = flatten_dict(params, sep="/")
    name = "decoder/blocks4/latents/bias"
    less = unflatten_dict({**flat, name: flat[name][:1]}, sep="/")
    with pytest.raises(ValueError, match=rf"{name} has shape \[1, 12\], and \[2, 12\] in the net"):
        vdvae.from_jaxgen(less, NETWORK)
    without = unflatten_dict({k: v for k, v in flat.items() if k != name}, sep="/")
    with pytest.raises(ValueError, match=r"missing decoder/blocks/2/latents/bias"):
        vdvae.from_jaxgen(without, NETWORK)
    grey = NETWORK.clone(num_params=6)
    with pytest.raises(ValueError, match="num_params of the network must be 10 a logistic"):
        vdvae.to_jaxgen({}, grey)
