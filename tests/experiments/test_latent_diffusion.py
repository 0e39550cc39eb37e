"""Diffusion on latents: the papers' networks by the flags, and two stages from the command line."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import xla_flags
from recipes import call, evaluated, fails

from experiments import (
    autoencoder_kl_digits,
    dit_latent,
    latent_diffusion,
    text_to_image,
    text_to_image_digits,
)
from experiments.recipes import diffusion
from experiments.recipes import latent_diffusion as recipe
from jaxgen.data.sources import digits
from jaxgen.data.transforms import prepare_images
from jaxgen.families.latent import Codec
from jaxgen.models.dit import dit_xl
from jaxgen.models.unet import ldm, ldm_text
from jaxgen.training import config as configs
from jaxgen.training.runs import open_run

SHARED = "--batch-size=8 --log-every=1 --sample-every=0".split()
FIRST = "--model.channels=4 --model.num-res-blocks=1 --steps=2".split()
SECOND = [
    *"--model.dit.width=16 --model.dit.depth=1 --model.dit.num-heads=2 --text.width=8".split(),
    *"--text.encoder=trained --text.num-layers=1 --text.num-heads=1".split(),
    "--sampler.num-steps=2",
]


@pytest.mark.parametrize(
    ("module", "network"),
    [
        (dit_latent, dit_xl(out_channels=4)),
        (latent_diffusion, ldm(out_channels=4)),
        (text_to_image, ldm_text(out_channels=4)),
    ],
    ids=["dit_latent", "latent_diffusion", "text_to_image"],
)
def test_the_networks_are_the_papers(module, network):
    made = diffusion.make_network(module.recipe.config.model, 4, "float32")
    same = {"dtype": jnp.dtype("float32"), "time_features": made.time_features}
    assert made == network.clone(**same)


def test_betas_with_linear_roots():
    betas = diffusion.make_betas(text_to_image.recipe.config.diffusion)
    np.testing.assert_allclose(betas[[0, -1]], [0.00085, 0.012])
    np.testing.assert_allclose(np.diff(np.sqrt(betas)), np.diff(np.sqrt(betas))[0], rtol=1e-6)


@pytest.mark.slow
def test_text_to_image(tmp_path, capsys):
    """Both stages, samples, guidance and evaluation; latents are kept; other first stages are
    refused."""
    first, second = (("--run-dir", str(tmp_path / name)) for name in ("first", "second"))
    call(capsys, autoencoder_kl_digits, *first, *SHARED, *FIRST)
    flags = (*second, f"--first-stage={tmp_path / 'first'}", *SHARED, *SECOND)
    out = call(capsys, text_to_image_digits, *flags, "--steps=2")
    assert "2 of 2 steps done" in out
    kept = sorted((tmp_path / "first").glob("latents_*.npz"))
    assert len(kept) == 2
    samples = tmp_path / "samples.npz"
    call(capsys, text_to_image_digits, "sample", *second, "--num=3", f"--out={samples}")
    assert np.load(samples)["samples"].shape == (3, 16, 16, 3)
    for name in ("guidance", "conditions", "completions", "variations"):
        picture = (f"--picture={name}", "--num=4", "--columns=2", f"--out={tmp_path / name}.png")
        call(capsys, text_to_image_digits, "sample", *second, *picture)
        assert (tmp_path / f"{name}.png").exists()
    result = evaluated(capsys, text_to_image_digits, *second)
    assert np.isfinite(result["loss"])
    assert "likelihood" not in result
    assert result["protocol"]["first_stage"] == "experiments.autoencoder_kl_digits, 2 steps"
    run = open_run(tmp_path / "second")
    raw = jax.tree.map(jnp.asarray, run.experiment.held_out[np.arange(2)])
    batch = run.experiment.prepare(jax.random.key(0), raw, False)
    assert batch["latents"].shape == (2, 8, 8, 4)
    again = (*flags, "--steps=3")
    message = fails(capsys, text_to_image_digits, *again, "--data.name=digits")
    assert "data.name" in message
    other = ("--run-dir", str(tmp_path / "other"), *flags[2:], "--steps=2")
    message = fails(capsys, text_to_image_digits, *other, "--data.name=digits")
    assert "was trained on other data" in message
    message = fails(capsys, text_to_image_digits, *other, f"--first-stage={tmp_path / 'second'}")
    assert "must be a run of a recipe such as autoencoder_kl" in message
    assert "needs --no-cached" in fails(capsys, text_to_image_digits, *other, "--flip")
    assert "must be false" in fails(capsys, text_to_image_digits, *other, "--sampler.clip")
    config = tmp_path / "first" / "config.json"
    content = config.read_text()
    config.write_text(content.replace('"steps": 2', '"steps": 5'))
    assert "has done 2 of 5 steps" in fails(capsys, text_to_image_digits, *other)
    config.write_text(content)
    call(capsys, autoencoder_kl_digits, *first, "--steps=3")
    assert "needed are latents of" in fails(capsys, text_to_image_digits, *again)
    for path in kept:
        path.unlink()
    assert "trained on other pretrained arrays" in fails(capsys, text_to_image_digits, *again)


def test_what_is_no_first_stage(tmp_path, capsys):
    flags = ("--run-dir", str(tmp_path / "run"), "--first-stage=nowhere")
    assert "is no run directory" in fails(capsys, text_to_image_digits, *flags)


def noisy_codec():
    """A codec that draws, of which every pixel is an affine map, and a run that prepares images."""

    def encode(fixed, batch, key):
        noise = jax.random.normal(key, batch["image"].shape)
        return {**batch, "image": fixed["scale"] * batch["image"] + noise}

    codec = Codec(encode, lambda fixed, latents, key: latents, {"scale": np.float32(3)})
    experiment = SimpleNamespace(prepare=prepare_images(flip=False))
    return SimpleNamespace(name="toy", step=1, experiment=experiment), codec


def test_latents_are_the_same_on_one_device_and_on_eight(monkeypatch):
    """Drawn by the number of the batch; each device encodes a part of it."""
    raw = digits("test")[np.arange(64)]
    devices, results = jax.local_devices(), []
    assert len(devices) == 8
    for count in (8, 1, 6):  # of six devices two are used, which divide a batch
        monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
        encode = recipe._make_encode(*noisy_codec())
        latents = [encode(raw, number) for number in (0, 5)]
        assert len(latents[0].sharding.device_set) == {8: 8, 1: 1, 6: 2}[count]
        results.append(np.asarray(latents))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert np.abs(results[0][0] - results[0][1]).max() > 0.1


OTHERS = {"model": {"condition": "none"}, "sampler": {"guidance_scale": 1.0}}
TOGETHER = """
import os, signal, sys
import jax
from experiments import text_to_image_digits
from experiments.recipes import latent_diffusion
from jaxgen.training import config as configs

OTHERS = %s
index = int(os.environ["JAX_PROCESS_ID"])
jax.distributed.initialize(num_processes=2, process_id=index)
make = latent_diffusion._make_encode

def counting(*args):
    encode = make(*args)

    def counted(raw, number):
        print("encodes", number, flush=True)
        if os.environ.get("DIES") == str(index):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(raw, number)

    return counted

latent_diffusion._make_encode = counting
recipe = text_to_image_digits.recipe
experiment = recipe.build(configs.replace(recipe.config, {"first_stage": sys.argv[1], **OTHERS}))
print("digest", experiment.pipeline.source.digest)
"""


def launched(first, **variables):
    """The outputs and exit codes of two processes with two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "XLA_FLAGS": xla_flags(2),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        **variables,
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER % OTHERS, str(first)],
            env={**shared, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    if "DIES" in variables:  # as a scheduler ends what is left of a job
        started[int(variables["DIES"])].wait(timeout=900)
        for process in started:
            process.kill()
    outputs = [process.communicate(timeout=900)[0] for process in started]
    return outputs, [process.returncode for process in started]


@pytest.mark.slow
def test_two_processes_encode_a_set_together(tmp_path, capsys):
    """Each its part, also after one was killed; the same latents as one process, written once."""
    first = tmp_path / "first"
    call(capsys, autoencoder_kl_digits, "--run-dir", str(first), *SHARED, *FIRST)
    outputs, codes = launched(first, DIES="1")
    assert codes[1] == -signal.SIGKILL, "\n".join(outputs)
    assert not list(first.glob("latents_*.npz"))
    outputs, codes = launched(first)
    assert codes == [0, 0], "\n".join(outputs)
    numbers = [[int(n) for n in re.findall(r"encodes (\d+)", output)] for output in outputs]
    assert numbers[1]
    assert min(numbers[1]) > 0
    digests = {re.search(r"digest (\w+)", output)[1] for output in outputs}
    together = {path.name: dict(np.load(path)) for path in first.glob("latents_*")}
    assert len(together) == 2
    assert all(name.endswith(".npz") for name in together)
    for path in first.glob("latents_*"):
        path.unlink()
    recipe = text_to_image_digits.recipe
    config = configs.replace(recipe.config, {"first_stage": str(first), **OTHERS})
    experiment = recipe.build(config)
    assert digests == {experiment.pipeline.source.digest}
    for path in first.glob("latents_*.npz"):
        alone = np.load(path)
        assert alone["identity"] == together[path.name]["identity"]
        np.testing.assert_allclose(together[path.name]["latents"], alone["latents"], atol=1e-5)
