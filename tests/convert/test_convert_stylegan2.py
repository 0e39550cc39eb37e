"""StyleGAN2's networks and ours: a pickle of their structure, not run, and their numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import nvidia
import optax
import pytest

from jaxgen.conditioning.base import Condition
from jaxgen.conditioning.labels import labels
from jaxgen.convert import persistence, stylegan2
from jaxgen.convert.tables import unflatten_dict
from jaxgen.families.stylegan import stylegan

torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
F = torch.nn.functional

SIZE, CHANNELS, CLAMP = 16, 3, 1.5
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
SIZES: dict[str, Any] = {"channel_base": 128, "channel_max": 16, "conv_clamp": CLAMP}
COMMON: dict[str, Any] = {"c_dim": 3, "img_resolution": SIZE, "img_channels": CHANNELS}
OF_GENERATOR = {
    **COMMON,
    "z_dim": 6,
    "w_dim": 8,
    "mapping_kwargs": {"num_layers": 2},
    "synthesis_kwargs": {**SIZES, "num_fp16_res": 4},
}
OF_DISCRIMINATOR = {
    **COMMON,
    **SIZES,
    "num_fp16_res": 4,
    "block_kwargs": {},
    "mapping_kwargs": {"num_layers": 3},
    "epilogue_kwargs": {"mbstd_group_size": 2},
}


class Theirs:
    """The equations of the paper and its code's options, on arrays by their names."""

    def __init__(self, arrays):
        self.p = {name: torch.tensor(array) for name, array in arrays.items()}
        self.used = set()
        self.filter = torch.tensor(FILTER)

    def get(self, name):
        self.used.add(name)
        return self.p[name]

    def linear(self, name, x, rate=1.0):
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        return F.linear(x, weight * rate / math.sqrt(weight.shape[1]), bias * rate)

    def active(self, x, gain=1.0, clamp=None):
        x = F.leaky_relu(x, 0.2) * math.sqrt(2) * gain
        return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)

    def smooth(self, x, gain=1.0, stride=1, padding=0):
        kernel = (gain * self.filter).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])

    def mapping(self, name, z, label, layers):
        def unit(x):
            return x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()

        parts = ([] if z is None else [unit(z)]) + [unit(self.linear(f"{name}.embed", label))]
        h = torch.cat(parts, dim=1)
        for i in range(layers):
            h = self.active(self.linear(f"{name}.fc{i}", h, 0.01))
        return h


class TheirGenerator(Theirs):
    def conv(self, name, x, w, *, up=False, demodulate=True):
        """By a kernel of each example's own."""
        style, weight = self.linear(f"{name}.affine", w), self.get(f"{name}.weight")
        if not demodulate:
            style = style / math.sqrt(weight.shape[1])
        results = []
        for image, scales in zip(x.split(1), style, strict=True):
            kernel = weight * scales[None, :, None, None]
            if demodulate:
                kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if up:
                y = F.conv_transpose2d(image, kernel.transpose(0, 1), stride=2)
                results.append(self.smooth(y, 4.0, padding=1))
            else:
                results.append(F.conv2d(image, kernel, padding=weight.shape[-1] // 2))
        return torch.cat(results)

    def layer(self, name, x, w, *, up=False):
        x = self.conv(name, x, w, up=up)
        x = x + self.get(f"{name}.noise_strength") * self.get(f"{name}.noise_const")
        return self.active(x + self.get(f"{name}.bias")[:, None, None], clamp=CLAMP)

    def __call__(self, z, label, psi=1.0):
        w = self.mapping("mapping", z, label, 2)
        mean = self.get("mapping.w_avg")
        w = mean + psi * (w - mean)
        x = self.get("synthesis.b4.const").expand(len(z), -1, -1, -1)
        image = 0
        for size in (4, 8, 16):
            block = f"synthesis.b{size}"
            if size > 4:
                x = self.layer(f"{block}.conv0", x, w, up=True)
                kernel = (4 * self.filter).expand(CHANNELS, 1, -1, -1)
                image = F.conv_transpose2d(image, kernel, stride=2, padding=1, groups=CHANNELS)
            x = self.layer(f"{block}.conv1", x, w)
            rgb = self.conv(f"{block}.torgb", x, w, demodulate=False)
            rgb = rgb + self.get(f"{block}.torgb.bias")[:, None, None]
            image = image + rgb.clamp(-CLAMP, CLAMP)
        return image


class TheirDiscriminator(Theirs):
    def conv(self, name, x, *, down=False, linear=False, gain=1.0):
        weight = self.get(f"{name}.weight")
        fan_in = weight[0].numel()
        weight, side = weight / math.sqrt(fan_in), weight.shape[-1]
        if down and side == 1:
            x = F.conv2d(self.smooth(x, stride=2, padding=1), weight)
        elif down:
            x = F.conv2d(self.smooth(x, padding=2), weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=side // 2)
        if linear:
            return x * gain
        return self.active(x + self.get(f"{name}.bias")[:, None, None], gain, CLAMP)

    def __call__(self, x, label):
        x = self.conv("b16.fromrgb", x)
        for size in (16, 8):
            residual = f"b{size}.skip.weight" in self.p
            gain = math.sqrt(0.5) if residual else 1.0
            y = self.conv(f"b{size}.conv0", x)
            y = self.conv(f"b{size}.conv1", y, down=True, gain=gain)
            if residual:
                y = y + self.conv(f"b{size}.skip", x, down=True, linear=True, gain=gain)
            x = y
        groups = x.reshape(2, -1, *x.shape[1:])  # of two examples each
        spread = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        spread = spread.repeat(2)[:, None, None, None].expand(-1, 1, 4, 4)
        x = self.conv("b4.conv", torch.cat([x, spread], dim=1))
        x = self.linear("b4.out", self.active(self.linear("b4.fc", x.flatten(1))))
        layers = sum(name.startswith("mapping.fc") for name in self.p) // 2
        told = self.mapping("mapping", None, label, layers)
        return (x * told).sum(dim=1) / math.sqrt(x.shape[1])


def layout_of(class_name, options):
    note = persistence.Module()
    note.class_name, note.state = class_name, {"_init_kwargs": options}
    return stylegan2.from_module(note)


def randomized(layout):
    """Arrays of the size that they have in training: the mapping's begin as 100 N(0, 1)."""
    rng = np.random.default_rng(0)
    flat = {}
    for name, shape in stylegan2._shapes(*layout).items():
        scale = 100 if "mapping/layer" in name else 1
        flat[name] = (scale * rng.normal(size=shape)).astype(np.float32)
    return unflatten_dict(flat, sep="/")


def build(networks):
    """A pickle of both, with filters and what else theirs has."""

    def content(persistent, easy_dict):
        modules = {}
        for key, (name, options, arrays) in networks.items():
            is_buffer = {k: k.endswith(("noise_const", "w_avg")) for k in arrays}
            weights = {k: v for k, v in arrays.items() if not is_buffer[k]}
            buffers = {k: v for k, v in arrays.items() if is_buffer[k]}
            prefix = "" if name == "Discriminator" else "synthesis."
            filters = {f"{prefix}b8{part}.resample_filter": FILTER for part in ("", ".conv1")}
            groups = {k: easy_dict(v) if isinstance(v, dict) else v for k, v in options.items()}
            modules[key] = nvidia.tree_of(persistent, name, groups, weights, buffers | filters)
        pipe = persistent("AugmentPipe", {"xflip": 1}, buffers={"p": np.zeros((), np.float32)})
        return {**modules, "augment_pipe": pipe, "training_set_kwargs": easy_dict(path="x")}

    return content


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "resnet"},
        {"architecture": "orig", "mapping_kwargs": {"num_layers": 0, "lr_multiplier": 0.1}},
    ],
    ids=["resnet", "orig"],
)
def test_a_pickle_gives_the_numbers_of_their_networks(options, monkeypatch, tmp_path):
    """Built of arrays by names, pickled as theirs are, read, converted, compared in a family."""
    networks = {}
    of_discriminator = {**OF_DISCRIMINATOR, **options}
    pairs = (("G_ema", "Generator", OF_GENERATOR), ("D", "Discriminator", of_discriminator))
    for key, name, options in pairs:
        layout = layout_of(name, options)
        assert layout[1:] == ((SIZE, SIZE, CHANNELS), 3)
        networks[key] = (name, options, stylegan2.from_jaxgen(randomized(layout), *layout))
    path = tmp_path / "network.pkl"
    path.write_bytes(nvidia.pickled(monkeypatch, build(networks)))
    read = persistence.read(path)
    assert set(read) == {"G_ema", "D", "augment_pipe", "training_set_kwargs"}
    generator, discriminator = (stylegan2.convert(read[key]) for key in ("G_ema", "D"))
    for key, converted in (("G_ema", generator), ("D", discriminator)):
        back = stylegan2.from_jaxgen(converted.collections, *converted.layout)
        assert back.keys() == networks[key][2].keys()
        for name, array in networks[key][2].items():
            np.testing.assert_array_equal(back[name], array)

    rng = np.random.default_rng(1)
    z = rng.normal(size=(4, 6)).astype(np.float32)
    label = np.array([2, 0, 1, 1])
    one_hot = torch.eye(3)[label]
    theirs = TheirGenerator(networks["G_ema"][2])
    sgd = optax.sgd(0.1)
    modules = generator.layout.network, discriminator.layout.network
    family = stylegan(*modules, sgd, sgd, conditioning=labels(3), path_length=None)
    variables = stylegan2.variables_of(generator.collections, discriminator.collections)
    decode = jax.jit(family.decode, static_argnames="truncation")
    for psi in (1.0, 0.7):
        expected = theirs(torch.tensor(z), one_hot, psi).permute(0, 2, 3, 1).numpy()
        ours = decode(variables, z, jax.random.key(0), condition=label, truncation=psi)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert theirs.used == networks["G_ema"][2].keys()

    x = rng.normal(size=(4, SIZE, SIZE, CHANNELS)).astype(np.float32)
    judge = TheirDiscriminator(networks["D"][2])
    expected = judge(torch.tensor(x).permute(0, 3, 1, 2), one_hot).numpy()
    assert judge.used == networks["D"][2].keys()
    told = Condition(jnp.eye(3)[label])
    apply = jax.jit(modules[1].apply, static_argnames="train")
    ours = apply(discriminator.collections, x, told, train=False).logits
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_generator_alone():
    layout = layout_of("Generator", {**OF_GENERATOR, "c_dim": 0})
    assert layout.num_classes is None
    variables = stylegan2.variables_of(randomized(layout))
    assert set(variables.params) == {"generator"}
    assert set(variables.state["generator"]) == {"average", "noise"}


def test_the_published_networks():
    """What the authors' command makes for CIFAR-10."""
    kept = {"c_dim": 10, "img_resolution": 32, "img_channels": 3}
    sizes = {"channel_base": 32768, "channel_max": 512, "num_fp16_res": 4, "conv_clamp": 256}
    options = {**kept, "z_dim": 512, "w_dim": 512, "mapping_kwargs": {"num_layers": 2}}
    generator = layout_of("Generator", {**options, "synthesis_kwargs": sizes}).network
    assert (generator.image_size, generator.mapping_layers, generator.clamp) == (32, 2, 256.0)
    options = {**kept, **sizes, "architecture": "orig", "epilogue_kwargs": {"mbstd_group_size": 32}}
    discriminator = layout_of("Discriminator", options).network
    assert (discriminator.residual, discriminator.stddev_group) == (False, 32)
    assert discriminator.mapping_layers == 8
    options["epilogue_kwargs"] = {"mbstd_num_channels": 0}
    assert layout_of("Discriminator", options).network.stddev_group == 0


def test_options_that_are_left_out():
    """They are the defaults of the authors' code, which clamps nothing."""
    generator = layout_of("Generator", {**COMMON, "z_dim": 6, "w_dim": 8}).network
    discriminator = layout_of("Discriminator", COMMON).network
    for network in (generator, discriminator):
        assert (network.channel_base, network.channel_max, network.clamp) == (32768, 512, None)
        assert network.mapping_layers == 8
    assert generator.average_decay == 0.995
    assert (discriminator.residual, discriminator.stddev_group) == (True, 4)


def test_options_without_effect():
    """The authors' code writes these where it converts a discriminator of TensorFlow's."""
    told = {"num_layers": 0, "lr_multiplier": 0.1, "embed_features": None, "layer_features": 7}
    converted = {**OF_DISCRIMINATOR, "mapping_kwargs": told, "block_kwargs": {"freeze_layers": 0}}
    assert layout_of("Discriminator", converted).network.mapping_layers == 0
    alone = layout_of("Discriminator", {**converted, "c_dim": 0, "cmap_dim": 7})
    assert alone.num_classes is None
    assert not any("mapping" in name for name in stylegan2._shapes(*alone))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("SynthesisNetwork", {}, "must be Generator or Discriminator, got SynthesisNetwork"),
        ("Generator", {"z_dim": None}, "Generator does not say its 'z_dim'"),
        (
            "Generator",
            {"magnitude_ema_beta": 0.9},
            "magnitude_ema_beta is no option of our network",
        ),
        (
            "Generator",
            {"synthesis_kwargs": {"architecture": "resnet"}},
            "architecture must be 'skip' for our network, got 'resnet'",
        ),
        (
            "Generator",
            {"synthesis_kwargs": {"resample_filter": [1, 1]}},
            r"resample_filter must be \[1, 3, 3, 1\] for our network, got \[1, 1\]",
        ),
        (
            "Generator",
            {"mapping_kwargs": {"layer_features": 9}},
            "layer_features must be None or 8 for our network, got 9",
        ),
        ("Generator", {"mapping_kwargs": {"w_avg_beta": None}}, "w_avg_beta must be a number"),
        ("Discriminator", {"architecture": "skip"}, "must be resnet or orig, got 'skip'"),
        ("Discriminator", {"cmap_dim": 7}, "cmap_dim must be None or 16 for our network, got 7"),
        (
            "Discriminator",
            {"mapping_kwargs": {"lr_multiplier": 0.1}},
            "lr_multiplier must be 0.01 for our network, got 0.1",
        ),
        (
            "Discriminator",
            {"mapping_kwargs": {"num_layers": 0, "layers": 2}},
            "layers is no option of our network, got 2",
        ),
        (
            "Discriminator",
            {"epilogue_kwargs": {"mbstd_group_size": None}},
            "mbstd_group_size must be a number, got None",
        ),
        (
            "Discriminator",
            {"epilogue_kwargs": {"mbstd_num_channels": 2}},
            "mbstd_num_channels must be 0 or 1 for our network, got 2",
        ),
    ],
)
def test_networks_that_ours_cannot_be(name, changes, message):
    options = OF_DISCRIMINATOR if name == "Discriminator" else OF_GENERATOR
    given = {k: v for k, v in {**options, **changes}.items() if k not in changes or v is not None}
    with pytest.raises(ValueError, match=message):
        layout_of(name, given)


def test_another_filter_is_refused():
    layout = layout_of("Generator", OF_GENERATOR)
    arrays = stylegan2.from_jaxgen(randomized(layout), *layout)
    for other in (np.ones((4, 4), np.float32) / 16, FILTER[:2, :2]):
        arrays["synthesis.b8.conv0.resample_filter"] = other
        with pytest.raises(ValueError, match=r"b8\.conv0\.resample_filter must be the filter"):
            stylegan2.to_jaxgen(arrays, *layout)


def test_every_array_is_used_once():
    layout = layout_of("Discriminator", OF_DISCRIMINATOR)
    arrays = stylegan2.from_jaxgen(randomized(layout), *layout)
    arrays["b8.conv2.weight"] = arrays.pop("b8.conv1.weight")
    with pytest.raises(ValueError, match=r"missing b8\.conv1\.weight \(near is b8\.conv"):
        stylegan2.to_jaxgen(arrays, *layout)
