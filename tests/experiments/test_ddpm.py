"""The DDPM recipes, end to end: shrunk here, at their own size in the slow test."""

import json

import numpy as np
import pytest
from recipes import call, fails, launch, recognised, sklearn_classifier

from experiments import ddpm_cifar, ddpm_digits

TINY = (
    "--model.channels=8 --model.multipliers 1 2 --model.attention-resolutions 4 --batch-size=16 "
    "--model.num-res-blocks=1 --diffusion.num-timesteps=20 --sampler.preview-steps=5 --log-every=5 "
    "--evaluation.num-examples=16"
).split()


def test_recipe_end_to_end(tmp_path, capsys):
    """The CIFAR-10 recipe, on the embedded digits, over eight devices: train, sample, evaluate."""
    run_dir = str(tmp_path / "run")
    flags = ("--run-dir", run_dir, "--data.name", "digits", *TINY)
    more = ("--model.condition=label", "--diffusion.learned-variance", "--accumulate=2")
    out = call(capsys, ddpm_cifar, *flags, *more, "--steps=10")
    assert "10 of 10 steps done" in out
    assert (tmp_path / "run" / "samples" / "00000010.png").exists()

    samples = tmp_path / "samples.npz"
    guided = ("--sampler.name=ddim", "--sampler.num-steps=4", "--sampler.guidance-scale=2.0")
    call(capsys, ddpm_cifar, "sample", "--run-dir", run_dir, "--num=3", f"--out={samples}", *guided)
    with np.load(samples) as data:
        assert data["samples"].shape == (3, 8, 8, 1)

    result = json.loads(call(capsys, ddpm_cifar, "evaluate", "--run-dir", run_dir).splitlines()[-1])
    assert 0 < result["bits_per_dim"] < 50
    assert result["loss"] == pytest.approx(result["bits_per_dim"] * 64 * np.log(2), rel=1e-5)
    assert result["protocol"]["num_examples"] == 16
    assert "test" in result["protocol"]["data"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.name", "cifra10"], "unknown data set 'cifra10'; did you mean 'cifar10'"),
        (["--data.name", "cifar10", "--data.dir", "nowhere"], "nowhere"),
        (["--model.multipliers", "1", "2", "2", "2", "2"], "cannot be halved 4 times"),
        (["--sampler.guidance-scale", "2.0"], "needs --model.condition"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, message):
    args = [*TINY, "--run-dir", str(tmp_path / "run"), *flags]
    assert message in fails(capsys, ddpm_digits, *args)


@pytest.mark.slow
def test_digits_anyone_can_read(tmp_path, capsys):
    """An independent classifier knows the samples nearly as often as held-out real digits."""
    classifier, real = sklearn_classifier()
    launch(ddpm_digits, tmp_path / "run", optimized=True)
    out = tmp_path / "samples.npz"
    run_dir = ("--run-dir", str(tmp_path / "run"))
    call(capsys, ddpm_digits, "sample", *run_dir, "--num=500", f"--out={out}")
    with np.load(out) as data:
        share, classes = recognised(classifier, data["samples"])
    print(f"recognised: {share:.3f} of samples, {real:.3f} of held-out digits")
    assert share >= 0.9 * real
    assert classes == set(range(10))
