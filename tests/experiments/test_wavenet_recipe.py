"""The WaveNet recipe end to end, shrunk, on tones made here."""

import numpy as np
import pytest
from PIL import Image
from recipes import call, evaluated, fails
from scipy.io import wavfile

from experiments import wavenet_audio

RATE = 2000
SMALL = (
    "--model.stacks=1",
    "--model.layers=3",
    "--model.channels=4",
    "--model.skip-channels=8",
    "--audio.window=100",
    "--sample-seconds=0.06",
)
SHORT = ("--steps=4", "--log-every=1", "--batch-size=8", "--sample-every=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones of two heights, in a folder for each."""
    root = tmp_path_factory.mktemp("tones")
    time = np.arange(500) / RATE
    for i in range(12):
        name, hertz = (("low", 100), ("high", 400))[i % 2]
        (root / name).mkdir(exist_ok=True)
        sound = 8000 * np.sin(2 * np.pi * (hertz + i) * time)
        wavfile.write(root / name / f"{i}.wav", RATE, sound.astype(np.int16))
    return root


@pytest.mark.slow
def test_end_to_end(folder, tmp_path, capsys):
    """Train with previews, evaluate, sample; resume."""
    run_dir = tmp_path / "run"
    flags = ("--run-dir", str(run_dir), f"--data.dir={folder}")
    labels = ("--audio.label=folder", "--model.condition=label")
    out = call(capsys, wavenet_audio, *flags, *labels, *SMALL, *SHORT)
    assert "4 of 4 steps done" in out
    names = sorted(p.name for p in (run_dir / "samples").iterdir())
    assert names == [f"0000000{i}.{suffix}" for i in (2, 4) for suffix in ("png", "wav")]
    rate, audio = wavfile.read(run_dir / "samples" / "00000004.wav")
    assert rate == RATE
    assert len(audio) == 4 * 120 + 3 * 500  # four samples, three pauses
    assert call(capsys, wavenet_audio, "--run-dir", str(run_dir))

    result = evaluated(capsys, wavenet_audio, *flags[:2])
    assert result["bits_per_sample"] == pytest.approx(result["loss"] / 100 / np.log(2), rel=1e-5)
    assert 0 < result["bits_per_sample"] < 9
    assert result["protocol"]["sample_rate"] == RATE
    assert "windows of 100 samples" in result["protocol"]["data"]

    out = tmp_path / "new" / "x.wav"
    say = ("sample", *flags[:2], "--num=2", f"--out={out}")
    assert f"samples: {out}" in call(capsys, wavenet_audio, *say)
    assert len(wavfile.read(out)[1]) == 2 * 120 + 500
    assert Image.open(out.with_suffix(".png")).mode == "RGB"
    assert "x.wav exists and is not overwritten" in fails(capsys, wavenet_audio, *say)
    out.unlink()
    assert "x.png exists and is not overwritten" in fails(capsys, wavenet_audio, *say)
    say = ("sample", *flags[:2], "--num=2", f"--out={tmp_path / 'x.npz'}")
    call(capsys, wavenet_audio, *say)
    assert np.load(tmp_path / "x.npz")["samples"].shape == (2, 120)
    say = ("sample", *flags[:2], f"--out={tmp_path / 'y.png'}")
    assert "must end in .wav" in fails(capsys, wavenet_audio, *say)


@pytest.mark.slow
def test_logistics_of_sixteen_bits(folder, tmp_path, capsys):
    run_dir = str(tmp_path / "run")
    flags = (
        "--model.output=mixture_of_logistics",
        "--model.num-values=65536",
        "--model.mixtures=2",
    )
    options = (f"--data.dir={folder}", "--audio.sample-rate=1000", "--audio.resample")
    context = ("--model.full-context", "--sample-every=0")
    call(capsys, wavenet_audio, "--run-dir", run_dir, *SMALL, *SHORT, *flags, *options, *context)
    result = evaluated(capsys, wavenet_audio, "--run-dir", run_dir)
    expected = result["loss"] / (100 - 8) / np.log(2)  # seven positions and the one before
    assert result["bits_per_sample"] == pytest.approx(expected, rel=1e-5)
    assert result["protocol"]["sample_rate"] == 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data.dir must name a folder"),
        (["--data.dir=nowhere"], "there is no folder of recordings nowhere"),
        (["--data.dir=FOLDER", "--data.name=digits"], "--data.name must be folder"),
        (["--data.dir=FOLDER", "--data.resize=8"], "--data.resize is for images"),
        (["--data.dir=FOLDER", "--audio.sample-rate=16000"], "sample rate of 2000 Hz, not 16000"),
        (["--data.dir=FOLDER", "--model.full-context", "--model.layers=9"], "--audio.window above"),
        (["--data.dir=FOLDER", "--model.condition=label"], "needs --audio.label folder or word"),
        (["--data.dir=FOLDER", "--sample-seconds=0"], "sample_length must be at least 1"),
    ],
)
def test_bad_input(folder, tmp_path, capsys, flags, message):
    flags = [flag.replace("FOLDER", str(folder)) for flag in flags]
    error = fails(capsys, wavenet_audio, "--run-dir", str(tmp_path / "run"), *SMALL, *flags)
    assert message in error
