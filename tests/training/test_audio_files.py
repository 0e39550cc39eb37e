"""Sound files and pictures of sound: what is in them, and that they are whole."""

import numpy as np
import pytest
from PIL import Image
from scipy import signal
from scipy.io import wavfile

from jaxgen.training.audio import save_wav, sound, spectrogram, spectrogram_picture
from jaxgen.training.images import save_png

RATE = 8000


def tone(hertz=1000.0, seconds=0.5, level=1.0):
    x = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.round(32767 * x).astype(np.int16)


def test_sounds_follow_each_other(tmp_path):
    first, second = tone(), tone(500)
    save_wav(tmp_path / "new" / "x.wav", np.stack([first, second]), RATE)
    rate, audio = wavfile.read(tmp_path / "new" / "x.wav")
    assert rate == RATE
    assert audio.dtype == np.int16
    np.testing.assert_array_equal(audio, np.concatenate([first, np.zeros(2000), second]))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.wav"]


def test_wav_is_not_overwritten_unasked(tmp_path):
    audio = tone()[None]
    save_wav(tmp_path / "x.wav", audio, RATE)
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        save_wav(tmp_path / "x.wav", audio, RATE)
    save_wav(tmp_path / "x.wav", audio[:, :100], RATE, overwrite=True)
    assert len(wavfile.read(tmp_path / "x.wav")[1]) == 100
    with pytest.raises(ValueError, match=r"must end in \.wav"):
        save_wav(tmp_path / "x.mp3", audio, RATE)
    with pytest.raises(ValueError, match="nothing empty"):
        save_wav(tmp_path / "y.wav", audio[:, :0], RATE)
    with pytest.raises(ValueError, match="sample_rate must be at least 1"):
        save_wav(tmp_path / "y.wav", audio, 0)


def test_spectrogram_of_a_tone():
    """A sine of full scale has 0 dB at its frequency and the window's lobes beside it."""
    decibels = spectrogram(tone(1000), window=256)
    inner = decibels[:, 4:-4]
    assert (inner.argmax(axis=0) == 32).all()  # 1000 of 8000 Hz, of 256
    np.testing.assert_allclose(inner[32], 0, atol=0.01)
    np.testing.assert_allclose(inner[33], -6.02, atol=0.05)  # Hann's neighbours are half
    assert inner[60].max() < -80
    np.testing.assert_allclose(spectrogram(tone(level=0.1), 256)[32, 4:-4], -20, atol=0.02)
    assert spectrogram(np.zeros(1000, np.int16)).max() == -120


def test_spectrogram_equals_scipy():
    sound = np.random.default_rng(0).integers(-9000, 9000, 3001).astype(np.int16)
    ours = spectrogram(sound, window=128, hop=32)
    _, _, theirs = signal.stft(sound / 32768, nperseg=128, noverlap=96, boundary="zeros")
    np.testing.assert_allclose(ours, 20 * np.log10(2 * np.abs(theirs)), atol=1e-3)


def test_picture(tmp_path):
    """One spectrogram a sound, the tone's line where the axis has its frequency."""
    picture = spectrogram_picture(np.stack([tone(1000), tone(3000)]), RATE)
    assert picture.dtype == np.uint8
    half = picture.shape[0] // 2
    for rows, hertz in ((picture[:half], 1000), (picture[half:], 3000)):
        shown = rows[12:-24, 36:-36]
        assert shown.shape[0] >= 200
        assert shown.shape[1] >= 600
        for colour in ((0, 0, 4), (252, 253, 191)):  # silent and loudest
            assert (shown == np.uint8(colour)).all(axis=2).any()
        inside = shown.astype(int).sum(axis=2)
        loudest = inside[:, inside.shape[1] // 2].argmax()
        assert (1 - loudest / len(inside)) * 4000 == pytest.approx(hertz, abs=60)
    height, width = shown.shape[:2]
    below = (picture[-22, :, :] == 0).all(axis=1)  # the axis of time, and that of frequency
    np.testing.assert_allclose(np.flatnonzero(below), 36 + np.arange(5) * width / 4, atol=0.5)
    beside = (picture[half:, 33] == 0).all(axis=1)
    np.testing.assert_allclose(np.flatnonzero(beside), 12 + np.arange(5) * height / 4, atol=0.5)
    save_png(tmp_path / "x.png", picture)
    assert Image.open(tmp_path / "x.png").mode == "RGB"
    many = spectrogram_picture(np.stack([tone()] * 9), RATE)
    assert many.shape[0] == 8 * half


def test_files_of_samples(tmp_path):
    """What a family draws goes through `to_int16` into both."""
    files = sound(RATE, lambda x: (1000 * x).astype(np.int16))
    samples = np.ones((1, 500), np.float32)
    for _ in range(2):  # a run that was stopped between the two writes both again
        files.save(tmp_path / f"x{files.suffix}", samples)
    assert (wavfile.read(tmp_path / "x.wav")[1] == 1000).all()
    assert files.picture(samples, None).shape[2] == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrogram(tone(), window=7), "window must be even"),
        (lambda: spectrogram(tone(), hop=0), "hop at least 1"),
        (lambda: spectrogram(tone()[:0]), "must hold samples"),
        (lambda: spectrogram_picture(tone()[None], 0), "sample_rate must be at least 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
