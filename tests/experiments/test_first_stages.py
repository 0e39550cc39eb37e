"""First stages from the command line, shrunk, and the codec that a second stage is given."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails

from experiments import autoencoder_kl, autoencoder_kl_digits, vqgan
from experiments.recipes.first_stage import (
    between_codes,
    check_finished,
    make_bottleneck,
    make_sizes,
    real_codec,
)
from jaxgen.core import Family, Variables
from jaxgen.models import autoencoder as networks
from jaxgen.training.runs import open_run

TINY = (
    "--data.name=captioned_digits --data.resize=None --batch-size=8 --accumulate=1 --log-every=1 "
    "--checkpoint-every=100 --sample-every=0 --steps=2 --perceptual.distance=none "
    "--model.channels=4 --model.multipliers 1 2 --model.num-res-blocks=1 --game.channels=4 "
    "--game.num-layers=1 --game.start=1 --evaluation.num-examples=16"
).split()
BOTTLENECKS = {
    "kl": ["--model.latent-channels=3"],
    "vq": ["--model.latent-channels=3", "--model.num-codes=16", "--model.attention-factors", "2"],
    "fsq": ["--model.levels", "4", "3", "--model.attention-factors", "2"],
}


def test_the_published_tables():
    """The recipes' networks are the papers'."""
    kl, codes = (m.recipe.config for m in (autoencoder_kl, vqgan))
    assert make_sizes(kl.model) == networks.KL_F8
    assert make_sizes(codes.model) == networks.VQGAN_F16
    assert make_bottleneck(kl).moments == 2
    assert make_bottleneck(codes).num_codes == 1024
    assert (kl.game.start, kl.game.weight, kl.loss.kl_weight) == (50_001, 0.5, 1e-6)
    assert (codes.game.start, codes.game.weight) == (250_001, 0.8)


def test_between_examples_of_codes():
    """The way is that of the vectors before they are quantized, not of the numbers of codes."""

    def encode(variables, batch, key, *, continuous=False):
        assert continuous
        return 10 * batch["image"]

    def decode(variables, latents, key, *, condition=None):
        return jnp.round(latents)

    family = Family(None, {}, (), None, encode=encode, decode=decode, num_codes=9)
    x = jnp.array([0.0, 0.4]).reshape(2, 1, 1, 1)
    drawn = between_codes(family)(Variables({}), {"image": x}, jax.random.key(0), 2, 3)
    assert drawn.ravel().tolist() == [0, 2, 4, 4, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_recipe_end_to_end(name, tmp_path, capsys):
    """Train both players, evaluate, draw reconstructions; there is nothing to sample."""
    run_dir = ("--run-dir", str(tmp_path / "run"))
    module = autoencoder_kl_digits if name == "kl" else vqgan
    flags = [*TINY, *BOTTLENECKS[name], f"--model.bottleneck={name}", "--game.weight=0.5"]
    assert "2 of 2 steps done" in call(capsys, module, *run_dir, *flags)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    metric = "autoencoder/kl" if name == "kl" else "autoencoder/perplexity"
    for column in ("discriminator/loss", "autoencoder/psnr", metric):
        assert column in header
    result = evaluated(capsys, module, *run_dir)
    assert math.isfinite(result["loss"])
    assert math.isfinite(result["psnr"])
    names = ["reconstructions", "between_examples", *(["codes"] if name != "kl" else [])]
    for picture in names:
        out = tmp_path / f"{picture}.png"
        drawn = (f"--picture={picture}", "--num=6", "--columns=2", f"--out={out}")
        call(capsys, module, "sample", *run_dir, *drawn)
        assert out.exists()
    sample = ("sample", *run_dir, "--num=2", f"--out={tmp_path / 'samples.npz'}")
    assert "no prior" in fails(capsys, module, *sample)

    run = open_run(tmp_path / "run")
    codec = real_codec(run)
    raw = run.experiment.held_out[np.arange(8)]
    batch = run.experiment.prepare(jax.random.key(0), raw, False)
    key = jax.random.key(0)
    encoded = jax.jit(codec.encode)(codec.fixed, batch, key)["image"]
    assert encoded.shape == (8, 8, 8, 2 if name == "fsq" else 3)
    assert 0.3 < np.std(encoded) < 3
    rebuilt = jax.jit(codec.decode)(codec.fixed, encoded, key)
    assert rebuilt.shape == batch["image"].shape
    if name != "kl":
        codes = jax.jit(run.family.encode)(run.variables, batch, key)
        expected = jax.jit(run.family.decode)(run.variables, codes, key)
        np.testing.assert_allclose(rebuilt, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.multipliers", *"111111"], "must be multiples of 32"),
        (["--game.weight=1", "--game.num-layers=3"], "3 layers judge images of 24 pixels"),
        (["--model.attention-factors", "16"], "attention_factors must be among [1, 2]"),
        (["--loss.kl-weight=-1"], "kl_weight must be 0 or more, got -1"),
        (["--game.weight=-1"], "game.weight must be 0 or more, got -1"),
        (["--model.bottleneck=vq", "--model.num-codes=1"], "num_codes must be at least 2"),
    ],
)
def test_bad_input(flags, message, tmp_path, capsys):
    """Each is refused before anything is written."""
    run_dir = tmp_path / "run"
    assert message in fails(capsys, autoencoder_kl_digits, "--run-dir", str(run_dir), *flags)
    assert not run_dir.exists()


def test_a_first_stage_that_is_not_done():
    run = SimpleNamespace(step=2, name="experiments.vqgan", config=SimpleNamespace(steps=3))
    command = r"`python -m experiments\.vqgan train --run-dir runs/a --steps 2`"
    with pytest.raises(ValueError, match=rf"has done 2 of 3 steps: .* done by {command}"):
        check_finished(run, "runs/a")
