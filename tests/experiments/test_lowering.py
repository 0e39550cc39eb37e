"""Each recipe's programs at full size, lowered for CUDA and TPU: nothing for CPUs leaks there."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from lowering import (
    Lowered,
    files_of_that_shape,
    images_of_that_shape,
    recipes,
    vgg_of_that_shape,
)
from recipes import call
from scipy.io import wavfile

from experiments import autoencoder_kl_digits, stackgan_stage1, vqvae_cifar
from experiments.recipes import perceptual
from jaxgen.data import sources
from jaxgen.models.conv.layers import Conv
from jaxgen.training.config import DataConfig

QUICK = ("dcgan_digits", "vae_digits", "maf_tabular")
RECIPES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in recipes()
]


def lowered(name, tmp_path, capsys, monkeypatch, **changes):
    """A recipe's programs; what it reads besides images is made first."""
    if name == "wavenet_audio":
        (tmp_path / "a").mkdir()
        for i in range(12):
            sound = np.random.default_rng(i).normal(0, 3000, 150_000).astype(np.int16)
            wavfile.write(tmp_path / "a" / f"{i}.wav", 16_000, sound)
        config = recipes()[name].recipe.config
        changes["data"] = type(config.data)(name=config.data.name, dir=str(tmp_path))
    if name.endswith(("_power", "_gas")):
        columns = 8 if name.endswith("power") else 19
        path = tmp_path / "rows.npy"
        np.save(path, np.random.default_rng(0).normal(size=(2000, columns)))
        config = recipes()[name].recipe.config
        changes["data"] = dataclasses.replace(config.data, dir=str(path))
    if name in ("edm_captioned_digits", "edm_captions", "text_to_image_digits"):
        text = recipes()[name].recipe.config.text
        changes["text"] = dataclasses.replace(text, encoder="trained")
    if name in ("perceptual_vae", "autoencoder_kl", "vqgan"):
        monkeypatch.setattr(perceptual, "load_vgg16", vgg_of_that_shape)
    if name in ("vqvae_prior", "maskgit"):
        first = str(tmp_path / "first")
        flags = "--data.name=digits --data.resize=32 --batch-size=8 --steps=1 --sample-every=0"
        call(capsys, vqvae_cifar, "--run-dir", first, "--model.channels=8", *flags.split())
        changes |= {"first_stage": first, "data": DataConfig(name="digits", resize=32)}
    if name == "stackgan_stage2":
        first = str(tmp_path / "first")
        flags = "--batch-size=8 --steps=1 --sample-every=0 --model.generator-channels=4".split()
        monkeypatch.setattr(sources, "load", images_of_that_shape)
        monkeypatch.setattr(sources, "_from_files", files_of_that_shape)
        call(
            capsys, stackgan_stage1, "--run-dir", first, "--model.discriminator-channels=4", *flags
        )
        changes["first_stage"] = first
    if name in ("latent_diffusion", "dit_latent", "text_to_image", "text_to_image_digits"):
        first = str(tmp_path / "first")
        flags = ["--batch-size=8", "--steps=1", "--sample-every=0", "--model.channels=4"]
        flags += ["--model.multipliers", "1"]  # latents of the images' size
        call(capsys, autoencoder_kl_digits, "--run-dir", first, *flags)
        changes |= {"first_stage": first, "data": DataConfig(name="captioned_digits")}
    return Lowered(recipes()[name], monkeypatch, **changes)


def check(text):
    """No double precision, no call of the host."""
    assert not re.search(r"tensor<(\d+x)*f64>", text)
    assert not re.findall(r"custom_call @\S*(?:callback|python|host)\S*", text)


def transposed_images(text, batch):
    """The transposes of a program that move the axes of a batch of images [B, H, W, C] of more than
    a few channels: what an augmentation moves of the images themselves costs little."""
    found = re.findall(
        r"stablehlo\.transpose .*?dims = \[([\d, ]+)\] : \(tensor<([\dx]+)x\w+>", text
    )
    moved = []
    for dims, shape in found:
        sizes = [int(size) for size in shape.split("x")]
        axes = [axis for axis in map(int, dims.split(",")) if sizes[axis] > 1]
        is_image = len(sizes) == 4 and sizes[0] == batch and sizes[1] == sizes[2] > 1
        if is_image and sizes[3] > 4 and axes != sorted(axes):
            moved.append((dims, shape))
    return moved


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_lower(name, tmp_path, capsys, monkeypatch):
    """Step, samples and evaluation, from shapes alone."""
    programs = lowered(name, tmp_path, capsys, monkeypatch)
    for text in filter(None, (programs.step, programs.sample, programs.evaluate)):
        check(text)
    assert "stablehlo.while" in programs.step  # one dispatch for any number of steps
    assert not transposed_images(programs.step, recipes()[name].recipe.config.batch_size)


@pytest.mark.parametrize(
    "name", ["dcgan_digits", pytest.param("ddpm_cifar", marks=pytest.mark.slow)]
)
def test_bfloat16_reaches_the_convolutions(name, tmp_path, capsys, monkeypatch):
    """Those that cost: between more than a few channels."""
    text = lowered(name, tmp_path, capsys, monkeypatch, precision="bfloat16").step
    found = re.findall(r"stablehlo\.convolution.*: \(tensor<(\S+)>, tensor<(\S+)>\) ->", text)
    wide = [
        (left, right)
        for left, right in found
        if not re.search(r"x[1-4]x", right[3:]) and int(left.split("x")[-2]) > 4
    ]
    assert wide
    assert all(left.endswith("bf16") and right.endswith("bf16") for left, right in wide)


def test_what_is_looked_for_is_found():
    """The checks see a double, a callback."""
    with jax.enable_x64(True):
        double = export.export(jax.jit(lambda x: x * 2), platforms=["cuda"])(
            np.zeros(2)
        ).mlir_module()
    with pytest.raises(AssertionError):
        check(double)

    def calls(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((2,), jnp.float32), x)

    calling = jax.jit(calls).lower(np.zeros(2, np.float32)).as_text()
    with pytest.raises(AssertionError):
        check(calling)

    x = np.zeros((2, 8, 8, 6), np.float32)
    moving = jax.jit(lambda x: x.transpose(0, 3, 1, 2)).lower(x).as_text()
    assert transposed_images(moving, 2) == [("0, 3, 1, 2", "2x8x8x6")]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_convolutions_are_the_librarys_on_accelerators(platform):
    """As many as layers, channels last, none of the CPU's forms; on a CPU, its forms."""
    layers = [Conv(64, (3, 3)), Conv(64, (3, 3), strides=(2, 2)), Conv(3, (1, 1))]

    def network(params, x):
        for layer, p in zip(layers, params, strict=True):
            x = layer.apply({"params": p}, x)
        return x

    x = jax.ShapeDtypeStruct((8, 32, 32, 64), jnp.bfloat16)
    shapes = [(3, 3, 64, 64), (3, 3, 64, 64), (1, 1, 64, 3)]
    params = [
        {
            "kernel": jax.ShapeDtypeStruct(s, jnp.float32),
            "bias": jax.ShapeDtypeStruct(s[-1:], jnp.float32),
        }
        for s in shapes
    ]
    text = export.export(jax.jit(network), platforms=[platform])(params, x).mlir_module()
    assert len(re.findall(r"stablehlo\.convolution", text)) == 3
    assert len(re.findall(r"\[b, 0, 1, f\]x\[0, 1, i, o\]->\[b, 0, 1, f\]", text)) == 3
    assert "stablehlo.transpose" not in text
    assert "stablehlo.dot_general" not in text
    on_cpu = export.export(jax.jit(network), platforms=["cpu"])(params, x).mlir_module()
    assert len(re.findall(r"stablehlo\.convolution", on_cpu)) < 3
