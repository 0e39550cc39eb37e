"""A VQ-VAE and a PixelCNN or a transformer over its codes, from the command line, shrunk."""

import json

import numpy as np
import pytest
from recipes import call, evaluated, fails

from experiments import vqgan, vqvae_cifar, vqvae_prior
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
    result = evaluated(capsys, vqvae_prior, *second)
    assert result["loss"] == pytest.approx(result["first_stage"] + result["second_stage"], rel=1e-5)
    assert result["likelihood"]["bound"] == "ELBO"
    assert result["bits_per_dim"] == pytest.approx(result["loss"] / 64 / np.log(2), rel=1e-5)
    bits = result["second_stage"] / (10 * 16) / np.log(2)  # ten codes at each position
    assert result["bits_per_latent_dim"] == pytest.approx(bits, rel=1e-5)
    assert result["protocol"]["first_stage"] == "experiments.vqvae_cifar, 2 steps"
    saved = json.loads((tmp_path / "second" / "config.json").read_text())
    assert len(saved["fixed"]) == 32
    assert saved["config"]["first_stage"] == str(tmp_path / "first")
    run = open_run(tmp_path / "second")
    assert set(run.variables.params) == {network}
    call(capsys, vqvae_cifar, *first, "--steps=3")
    assert "trained on other pretrained arrays" in fails(capsys, vqvae_prior, *flags, "--steps=3")


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", ["vq", "fsq", "kl"])
def test_a_prior_over_the_codes_of_vqgan(bottleneck, tmp_path, capsys):
    """Of a codebook or FSQ there is a prior, whose loss is the codes' alone; of a Gaussian none."""
    first, second = (("--run-dir", str(tmp_path / name)) for name in ("first", "second"))
    tiny = (
        "--data.resize=None --accumulate=1 --perceptual.distance=none --model.channels=4 "
        "--model.multipliers 1 2 --model.num-res-blocks=1 --model.attention-factors 2 "
        "--model.latent-channels=2 --model.num-codes=16 --model.levels 4 3 --game.weight=0 "
        f"--model.bottleneck={bottleneck}"
    ).split()
    call(capsys, vqgan, *first, *SHARED, *tiny, "--steps=2")
    flags = (*second, f"--first-stage={tmp_path / 'first'}", "--model.network=transformer")
    flags = (*flags, "--model.num-heads=2", *SHARED, *SECOND, "--steps=2")
    if bottleneck == "kl":
        assert "must be a run with codes" in fails(capsys, vqvae_prior, *flags)
        return
    call(capsys, vqvae_prior, *flags)
    samples = tmp_path / "samples.npz"
    call(capsys, vqvae_prior, "sample", *second, "--num=3", f"--out={samples}")
    assert np.load(samples)["samples"].shape == (3, 8, 8, 1)
    result = evaluated(capsys, vqvae_prior, *second)
    bits = result["loss"] / 16 / np.log(2)
    assert result["bits_per_latent_dim"] == pytest.approx(bits, rel=1e-5)
    assert 1 < bits < 6
    assert result["protocol"]["loss"] == "-log p(codes), nats an example"
    call(capsys, vqgan, *first, "--steps=3", "--checkpoint-every=1")
    (tmp_path / "first" / "checkpoints" / "3").rename(tmp_path / "gone")
    assert "has done 2 of 3 steps" in fails(capsys, vqvae_prior, *flags, "--steps=3")


def test_what_is_no_first_stage(tmp_path, capsys):
    flags = ("--run-dir", str(tmp_path / "run"), "--data.name=digits")
    assert "is no run directory" in fails(capsys, vqvae_prior, *flags, "--first-stage=nowhere")
