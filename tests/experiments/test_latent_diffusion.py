"""Diffusion on latents: the papers' networks by the flags, and two stages from the command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails

from experiments import (
    autoencoder_kl_digits,
    dit_latent,
    latent_diffusion,
    text_to_image,
    text_to_image_digits,
)
from experiments.recipes import diffusion
from jaxgen.models.dit import dit_xl
from jaxgen.models.unet import ldm, ldm_text
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
