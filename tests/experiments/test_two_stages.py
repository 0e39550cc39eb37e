"""A VQ-VAE and a PixelCNN or a transformer over its codes, from the command line, shrunk."""

import json

import numpy as np
import pytest
from recipes import call, fails

from experiments import vqvae_cifar, vqvae_prior
from jaxgen.training.runs import open_run

SHARED = "--data.name=digits --batch-size=16 --log-every=1 --sample-every=0".split()
FIRST = "--model.channels=4 --model.num-res-blocks=0 --model.num-halvings=1 --model.num-codes=8"
SECOND = "--model.features=4 --model.layers=1 --model.head-features=4".split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "flags"),
    [("pixelcnn", []), ("transformer", ["--model.network=transformer", "--model.num-heads=2"])],
)
def test_a_prior_over_codes(network, flags, tmp_path, capsys):
    """Train both stages, sample and evaluate the second; another first stage is refused."""
    first, second = (("--run-dir", str(tmp_path / name)) for name in ("first", "second"))
    call(capsys, vqvae_cifar, *first, *SHARED, *FIRST.split(), "--steps=2")
    flags = (*second, f"--first-stage={tmp_path / 'first'}", *flags)
    out = call(capsys, vqvae_prior, *flags, *SHARED, *SECOND, "--steps=2", "--sample-every=2")
    assert "2 of 2 steps done" in out
    assert (tmp_path / "second" / "samples" / "00000002.png").exists()
    samples = tmp_path / "samples.npz"
    call(capsys, vqvae_prior, "sample", *second, "--num=3", f"--out={samples}")
    assert np.load(samples)["samples"].shape == (3, 8, 8, 1)
    result = json.loads(call(capsys, vqvae_prior, "evaluate", *second).splitlines()[-1])
    assert result["loss"] == pytest.approx(result["first_stage"] + result["second_stage"], rel=1e-5)
    assert result["likelihood"]["bound"] == "ELBO"
    assert result["bits_per_dim"] == pytest.approx(result["loss"] / 64 / np.log(2), rel=1e-5)
    bits = result["second_stage"] / 16 / np.log(2)
    assert result["bits_per_latent_dim"] == pytest.approx(bits, rel=1e-5)
    assert result["protocol"]["first_stage"] == "experiments.vqvae_cifar, 2 steps"
    saved = json.loads((tmp_path / "second" / "config.json").read_text())
    assert len(saved["fixed"]) == 32
    assert saved["config"]["first_stage"] == str(tmp_path / "first")
    run = open_run(tmp_path / "second")
    assert set(run.variables.params) == {network}
    call(capsys, vqvae_cifar, *first, "--steps=3")
    assert "trained on other pretrained arrays" in fails(capsys, vqvae_prior, *flags, "--steps=3")


def test_what_is_no_first_stage(tmp_path, capsys):
    flags = ("--run-dir", str(tmp_path / "run"), "--data.name=digits")
    assert "is no run directory" in fails(capsys, vqvae_prior, *flags, "--first-stage=nowhere")
