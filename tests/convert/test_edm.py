"""EDM's networks and ours: a pickle of their structure, not run, and the numbers of its network."""

import math
import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import nvidia
import pytest
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.convert import edm, persistence
from jaxgen.convert.tables import unflatten_dict

torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
F = torch.nn.functional

COMMON: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 3,
    "augment_dim": 9,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
NCSNPP = {
    **COMMON,
    "model_channels": 8,
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
CASES = {
    "ddpmpp": ("SongUNet", {**COMMON, "model_channels": 8}),
    "ncsnpp": ("SongUNet", NCSNPP),
    "adm": ("DhariwalUNet", {**COMMON, "model_channels": 64}),
}
FREQUENCIES = np.linspace(-1, 1, 8).astype(np.float32)


class Theirs:
    """EDM's networks by the paper's equations, on their arrays by their names."""

    def __init__(self, song, options, arrays):
        self.song, self.options = song, options
        self.p = {name: torch.tensor(array) for name, array in arrays.items()}
        self.used = set()
        taps = torch.tensor(options.get("resample_filter", [1, 1]), dtype=torch.float32)
        self.filter = torch.outer(taps, taps) / taps.sum() ** 2

    def get(self, name):
        self.used.add(name)
        return self.p[name]

    def linear(self, name, x):
        bias = self.get(f"{name}.bias") if f"{name}.bias" in self.p else None
        return F.linear(x, self.get(f"{name}.weight"), bias)

    def conv(self, name, x):
        weight = self.get(f"{name}.weight")
        return F.conv2d(x, weight, self.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        groups, eps = min(32, x.shape[1] // 4), 1e-6 if self.song else 1e-5
        return F.group_norm(x, groups, self.get(f"{name}.weight"), self.get(f"{name}.bias"), eps)

    def resample(self, x, way):
        channels, pad = x.shape[1], len(self.filter) // 2 - 1
        kernel = self.filter.expand(channels, 1, -1, -1)
        if way == "up":
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=channels)
        return F.conv2d(x, kernel, stride=2, padding=pad, groups=channels)

    def block(self, name, x, e, way=None):
        h = F.silu(self.norm(f"{name}.norm0", x))
        if way:
            h, x = self.resample(h, way), self.resample(x, way)
        h = self.conv(f"{name}.conv0", h)
        told = self.linear(f"{name}.affine", e)[:, :, None, None]
        if self.song:
            h = self.norm(f"{name}.norm1", h + told)
        else:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm(f"{name}.norm1", h) * (scale + 1) + shift
        h = self.conv(f"{name}.conv1", F.silu(h))
        if f"{name}.skip.weight" in self.p:
            x = self.conv(f"{name}.skip", x)
        scale = math.sqrt(0.5) if self.song else 1
        x = (x + h) * scale
        if f"{name}.qkv.weight" in self.p:
            heads = 1 if self.song else x.shape[1] // 64
            qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x))
            q, k, v = qkv.reshape(len(x), heads, x.shape[1] // heads, 3, -1).unbind(3)
            weights = (q.transpose(2, 3) @ k / math.sqrt(q.shape[2])).softmax(dim=-1)
            seen = (v @ weights.transpose(2, 3)).reshape(x.shape)
            x = (x + self.conv(f"{name}.proj", seen)) * scale
        return x

    def embed(self, t, label, augmentation):
        width = self.p["map_layer0.weight"].shape[1]
        if "map_noise.freqs" in self.p:
            angles = t[:, None] * 2 * math.pi * self.get("map_noise.freqs")
        else:
            half = width // 2
            angles = t[:, None] * 1e-4 ** (torch.arange(half) / (half - 1 if self.song else half))
        waves = [angles.sin(), angles.cos()]
        h = torch.cat(waves if self.song else waves[::-1], dim=1)
        h = h + self.linear("map_augment", augmentation)
        if self.song:
            h = h + self.linear("map_label", label * math.sqrt(label.shape[1]))
        h = self.linear("map_layer1", F.silu(self.linear("map_layer0", h)))
        return F.silu(h if self.song else h + self.linear("map_label", label))

    def __call__(self, x, t, label, augmentation):
        e = self.embed(t, label, augmentation)
        h = self.conv("enc.8x8_conv", x)
        kept, image = [h], x
        h = self.block("enc.8x8_block0", h, e)
        kept.append(h)
        h = self.block("enc.4x4_down", h, e, "down")
        if "enc.4x4_aux_residual.weight" in self.p:
            weight, bias = (self.get(f"enc.4x4_aux_residual.{n}") for n in ("weight", "bias"))
            full = F.conv2d(image, weight, padding=1 + 1)
            kernel = self.filter.expand(full.shape[1], 1, -1, -1)
            full = F.conv2d(full, kernel, stride=2, groups=full.shape[1])
            h = (h + full + bias[:, None, None]) / math.sqrt(2)
        kept.append(h)
        h = self.block("enc.4x4_block0", h, e)
        kept.append(h)
        h = self.block("dec.4x4_in1", self.block("dec.4x4_in0", h, e), e)
        for size in (4, 8):
            if size == 8:
                h = self.block("dec.8x8_up", h, e, "up")
            for i in range(2):
                h = self.block(f"dec.{size}x{size}_block{i}", torch.cat([h, kept.pop()], 1), e)
        last = "dec.8x8_aux" if self.song else "out"
        return self.conv(f"{last}_conv", F.silu(self.norm(f"{last}_norm", h)))


def layout_of(name):
    """The layout that a note of the network's class and options gives."""
    class_name, options = CASES[name]
    note = persistence.Module()
    note.class_name = class_name
    buffers = {"freqs": FREQUENCIES} if name == "ncsnpp" else {}
    noise = persistence.Module()
    noise.state = {"_buffers": buffers}
    note.state = {"_init_kwargs": options, "_modules": {"map_noise": noise}}
    return edm.from_module(note)


def randomized(layout):
    rng = np.random.default_rng(0)
    flat = {
        name: (0.2 * rng.normal(size=shape)).astype(np.float32)
        for name, shape in edm._shapes(*layout).items()
    }
    return unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("name", CASES)
def test_a_pickle_gives_the_numbers_of_their_network(name, monkeypatch, tmp_path):
    """Built of arrays by names, pickled as theirs are, read, converted, compared."""
    class_name, options = CASES[name]
    arrays = edm.from_jaxgen(randomized(layout_of(name)), *layout_of(name))
    buffers = {"enc.4x4_down.conv0.resample_filter": np.ones((1, 1, 2, 2), np.float32)}
    if name == "ncsnpp":
        buffers["map_noise.freqs"] = FREQUENCIES

    def build(persistent, easy_dict):
        model = nvidia.tree_of(persistent, class_name, options, arrays, buffers)
        preconditioned = {"img_resolution": 8, "model_type": class_name, "sigma": np.sqrt(0.5)}
        ema = persistent("EDMPrecond", preconditioned, parts={"model": model})
        return {"ema": ema, "loss_fn": None, "dataset_kwargs": easy_dict(path="x", sizes={1, 2})}

    path = tmp_path / "network.pkl"
    path.write_bytes(nvidia.pickled(monkeypatch, build))
    ema = persistence.read(path)["ema"]
    assert ema.class_name == "EDMPrecond"
    layout = edm.from_module(ema)
    assert layout[1:] == ((8, 8, 3), 3)
    params = edm.to_jaxgen(ema.arrays(), *layout)
    back = edm.from_jaxgen(params, *layout)
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array)

    rng = np.random.default_rng(1)
    x, augmentation = (rng.normal(size=s).astype(np.float32) for s in ((2, 8, 8, 3), (2, 9)))
    t, label = np.array([-1.3, 0.4], np.float32), np.eye(3, dtype=np.float32)[[2, 0]]
    theirs = Theirs(class_name == "SongUNet", options, {**arrays, **buffers})
    first = torch.tensor(x).permute(0, 3, 1, 2)
    expected = theirs(first, *map(torch.tensor, (t, label, augmentation))).permute(0, 2, 3, 1)
    assert theirs.used >= arrays.keys()
    image, times, label, augmentation = map(jnp.asarray, (x, t, label, augmentation))
    given = [image, times, Condition(label), augmentation]
    ours = jit(lambda p: layout.network.apply({"params": p}, *given, train=False))(params)
    expected = expected.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-5 * np.abs(expected).max())


def test_frequencies_are_those_of_training():
    layout = layout_of("ncsnpp")
    arrays = edm.from_jaxgen(randomized(layout), *layout)
    arrays["map_noise.freqs"] = FREQUENCIES + 1
    with pytest.raises(ValueError, match=r"must have the frequencies map_noise\.freqs"):
        edm.to_jaxgen(arrays, *layout)
    with pytest.raises(ValueError, match="frequencies must be 4, as many as channels, got 8"):
        edm.frozen_fourier(jnp.zeros(1), 4, frequencies=FREQUENCIES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_type": "skip"}, "decoder_type must be 'standard' for our network, got 'skip'"),
        ({"encoder_type": "skip"}, "encoder_type must be standard or residual, got 'skip'"),
        ({"channel_mult_emb": 2}, "channel_mult_emb must be 4"),
        ({"channel_mult_noise": 2}, "channel_mult_noise must be 1"),
        ({"resample_filter": [1, 2, 1]}, r"resample_filter must be \(1, 1\) or \(1, 3, 3, 1\)"),
        ({"embedding_type": "fourier", "channel_mult_noise": 2}, "has no map_noise.freqs"),
    ],
)
def test_networks_that_ours_cannot_be(changes, message):
    note = persistence.Module()
    note.class_name, note.state = "SongUNet", {"_init_kwargs": {**CASES["ddpmpp"][1], **changes}}
    with pytest.raises(ValueError, match=message):
        edm.from_module(note)


def test_what_is_no_such_network():
    note = persistence.Module()
    with pytest.raises(ValueError, match="must be SongUNet or DhariwalUNet, got Module"):
        edm.from_module(note)
    note.class_name = "SongUNet"
    with pytest.raises(ValueError, match="SongUNet does not say its 'img_resolution'"):
        edm.from_module(note)


def test_every_array_is_used_once():
    layout = layout_of("ddpmpp")
    arrays = edm.from_jaxgen(randomized(layout), *layout)
    arrays["enc.8x8_block1.norm0.weight"] = arrays.pop("enc.8x8_block0.norm0.weight")
    with pytest.raises(ValueError, match=r"missing enc\.8x8_block0\.norm0\.weight \(near is enc"):
        edm.to_jaxgen(arrays, *layout)


# A pickle that would set an attribute of the function that it is given.
SETS_AN_ATTRIBUTE = (
    b"\x80\x04ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    b"N}X\x01\x00\x00\x00aK\x01s\x86b."
)


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"ema": Evil()}), r"it refers to builtins\.print, which no network needs"),
        (pickle.dumps({"ema": 1})[:-3], r"network\.pkl is broken, or no pickle of networks"),
        (b"", "is broken"),
        (pickle.dumps([1]), "it holds no dictionary, but list"),
        (b"\x80\x04ctorch.storage\n_load_from_bytes\n(C\x03abctR.", "is broken"),
        (SETS_AN_ATTRIBUTE, "network.pkl is broken"),
    ],
)
def test_pickles_that_are_refused(content, message, tmp_path, capsys):
    path = tmp_path / "network.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        persistence.read(path)
    assert not capsys.readouterr().out
    assert not hasattr(persistence._persistent, "a")
    with pytest.raises(FileNotFoundError, match="there is no file of weights"):
        persistence.read(tmp_path / "nowhere.pkl")
