"""Sound as output: WAV files, and their spectrograms as pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16, UInt8
from PIL import Image, ImageDraw
from scipy.io import wavfile

from jaxgen.files import open_atomically
from jaxgen.training.experiment import Medium
from jaxgen.training.images import check_output

FLOOR = -80.0  # dB below the loudest that a picture shows
_PAUSE = 0.25  # seconds between samples in one file
_ROWS = 8  # samples in one picture
_HEIGHT, _WIDTH, _MARGIN = 200, 600, 36  # pixels of a spectrogram at least, and beside it
# From silent to loud: black, purple, red, orange, pale yellow.
_COLOURS = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)])


def save_wav(
    path: str | Path,
    audio: Int16[np.ndarray, "samples time"],
    sample_rate: int,
    *,
    overwrite: bool = False,
) -> None:
    """Writes sounds one after another, a quarter of a second apart, as 16-bit mono.

    The file is written whole or not at all; parent directories are created.

    Args:
        path: Path of the file, which ends in `.wav`.
        audio: Sounds, int16 [N, T].
        sample_rate: Number of samples a second, in Hz.
        overwrite: Whether to replace an existing file.

    Raises:
        ValueError: Another suffix, no samples in `audio`, or a rate below 1.
        FileExistsError: If `path` exists.
    """
    check_output(path, overwrite=overwrite, accepted=(".wav",))
    _check(audio, sample_rate)
    pause = np.zeros((len(audio), round(_PAUSE * sample_rate)), np.int16)
    whole = np.concatenate([audio, pause], axis=1).reshape(-1)
    with open_atomically(path) as file:
        wavfile.write(file, sample_rate, whole[: len(whole) - pause.shape[1]])


def spectrogram(
    audio: Int16[np.ndarray, " time"], window: int = 256, hop: int | None = None
) -> Float[np.ndarray, "frequencies frames"]:
    """The loudness of each frequency over time: `20 log10 |STFT|`, in dB of full scale.

    Hann windows, scaled so that a sine of full scale has 0 dB at its frequency. The sound begins
    and ends with half a window of silence, so that windows cover every sample.

    Args:
        audio: Samples of one sound, int16.
        window: Number of samples in a window, an even number.
        hop: Number of samples from window to window; a quarter of a window by default.

    Returns:
        dB, at least -120, `[window / 2 + 1, frames]`: frequency i is `i / window` of the sample
        rate.

    Raises:
        ValueError: No audio, a window that is not even and positive, or a hop below 1.
    """
    hop = window // 4 if hop is None else hop
    if window < 2 or window % 2 or hop < 1:
        raise ValueError(f"window must be even and hop at least 1, got {window} and {hop}")
    if not audio.size:
        raise ValueError("audio must hold samples, got none")
    x = np.pad(audio / 32768.0, window // 2)
    x = np.pad(x, (0, -(len(x) - window) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    magnitude = np.abs(np.fft.rfft(frames * hann[None], axis=1)) / (hann.sum() / 2)
    return 20 * np.log10(np.maximum(magnitude, 1e-6)).T


def spectrogram_picture(
    audio: Int16[np.ndarray, "samples time"], sample_rate: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Spectrograms under each other, time to the right in seconds, frequency upwards in kHz.

    Windows of about 32 ms. Colours go from black, 80 dB below the loudest of each sound, to pale
    yellow.

    Args:
        audio: Sounds, int16 [N, T]; the first eight are drawn.
        sample_rate: Number of samples a second, in Hz.

    Returns:
        One RGB image.

    Raises:
        ValueError: No samples in `audio`, or a rate below 1.
    """
    _check(audio, sample_rate)
    window = max(32, 2 ** round(np.log2(0.032 * sample_rate)))
    rows = [_draw(spectrogram(sound, window), sound, sample_rate) for sound in audio[:_ROWS]]
    return np.concatenate(rows)


def sound(
    sample_rate: int, to_int16: Callable[[np.ndarray], Int16[np.ndarray, "samples time"]]
) -> Medium:
    """Sound as a medium: samples as a WAV file with a picture of their spectrograms.

    Args:
        sample_rate: Number of samples a second, in Hz.
        to_int16: Function from the family's samples to int16 [N, T].
    """

    def save(path: Path, samples: np.ndarray) -> None:
        save_wav(path, to_int16(samples), sample_rate, overwrite=True)

    def picture(samples: np.ndarray, columns: int | None) -> np.ndarray:
        return spectrogram_picture(to_int16(samples), sample_rate)

    return Medium("windows", lambda x: x, (1, 4), picture, ".wav", save)


def _draw(decibels: np.ndarray, sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """One spectrogram with its axes."""
    loudness = np.clip((decibels[::-1] - decibels.max()) / -FLOOR + 1, 0, 1)
    anchors = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(loudness, anchors, c) for c in _COLOURS.T], axis=-1)
    up, across = -(-_HEIGHT // decibels.shape[0]), -(-_WIDTH // decibels.shape[1])
    pixels = np.round(colours).astype(np.uint8).repeat(up, axis=0).repeat(across, axis=1)
    height, width = pixels.shape[:2]
    canvas = Image.new("RGB", (width + 2 * _MARGIN, height + _MARGIN), "white")
    canvas.paste(Image.fromarray(pixels), (_MARGIN, _MARGIN // 3))
    pen, bottom = ImageDraw.Draw(canvas), height + _MARGIN // 3
    for i in range(5):
        x, y = _MARGIN + i * width / 4, bottom - i * height / 4
        pen.text((2, y - 6), f"{i * sample_rate / 8000:.3g}k", fill="black")
        pen.line((_MARGIN - 4, y, _MARGIN, y), fill="black")
        pen.text((x - 10, bottom + 6), f"{i * len(sound) / 4 / sample_rate:.3g} s", fill="black")
        pen.line((x, bottom, x, bottom + 4), fill="black")
    return np.asarray(canvas)


def _check(audio: np.ndarray, sample_rate: int) -> None:
    if audio.ndim != 2 or not audio.size:
        raise ValueError(f"audio must be int16 [N, T] with nothing empty, got {list(audio.shape)}")
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1 Hz, got {sample_rate}")
