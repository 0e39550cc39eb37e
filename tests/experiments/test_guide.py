"""Guidance by a classifier of noisy images, from the command line: recipe, table, refusals."""

import pytest
from recipes import call, evaluated

from experiments import edm_digits, guide, noisy_classifier_digits, vae_digits

TINY = "--batch-size=16 --model.channels=8 --model.multipliers 1 2 --log-every=5".split()
MODEL = [*TINY, "--model.num-res-blocks=1", "--sampler.num-steps=3"]
DENSE = "--batch-size=16 --model.network=dense --model.features 8 --model.latent-dim=2".split()


@pytest.mark.slow
def test_from_runs_to_a_table(tmp_path, capsys):
    runs = {name: str(tmp_path / name) for name in ("edm", "judge", "vae")}
    call(capsys, edm_digits, "--run-dir", runs["edm"], *MODEL, "--steps=5")
    judge = [*TINY, "--run-dir", runs["judge"], "--steps=5"]
    call(capsys, noisy_classifier_digits, *judge)
    result = evaluated(capsys, noisy_classifier_digits, "--run-dir", runs["judge"])
    assert 0 <= result["accuracy"] <= 1

    grid = tmp_path / "grid.png"
    flags = ["--scales", "0", "2", "--num-samples=20", f"--out={grid}"]
    assert guide.main([runs["edm"], runs["judge"], *flags]) == 0
    out = capsys.readouterr().out
    assert "| scale | read as their class | FD-classifier |" in out
    assert "\n| 2 | " in out
    assert grid.read_bytes()[:4] == b"\x89PNG"

    call(capsys, vae_digits, "--run-dir", runs["vae"], *DENSE, "--steps=2")
    refused = [
        ([runs["vae"], runs["judge"]], "must be a run of denoised images without a condition"),
        ([runs["edm"], runs["edm"]], "must be a run of a classifier of noisy images"),
        ([runs["edm"], runs["judge"], "--num-samples=5"], "must be at least 20, got 5"),
        ([runs["edm"], runs["judge"], "--scales", "-1"], "--scales must be at least 0, got -1"),
    ]
    for arguments, message in refused:
        assert guide.main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "nor"], "none is no run directory"),
        (["none", "nor", "--out=x.jpg"], "must end in .png"),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert guide.main(arguments) == 2
    assert message in capsys.readouterr().err
