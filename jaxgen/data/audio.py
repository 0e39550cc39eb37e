"""Recorded sound: files as a source of windows, and the samples' way to model space.

At rest audio is int16, or uint8 of mu-law classes, `[N, T]`.
"""

import io
import math
import struct
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int16, Shaped
from scipy import signal
from scipy.io import wavfile

from jaxgen.checks import check_memory
from jaxgen.data.folders import files_in, split_by_name
from jaxgen.data.mu_law import mu_law_decode, mu_law_encode
from jaxgen.data.sources import ArraySource

SPLITS = ("train", "test", "all")
SUFFIXES = (".wav", ".flac", ".ogg")
_FULL_SCALE = 32768.0  # of int16


class AudioSource(ArraySource):
    """Windows of recordings in memory, as `audio_folder` gives them.

    Attributes:
        sample_rate: Samples a second, in Hz.
    """

    def __init__(self, arrays, *, sample_rate: int, **options: Any):
        super().__init__(arrays, **options)
        self.sample_rate = sample_rate


def audio_folder(
    path: str | Path,
    split: str = "train",
    *,
    num_samples: int,
    sample_rate: int | None = None,
    resample: bool = False,
    label: str = "none",
    held_out: float = 0.1,
) -> AudioSource:
    """Windows of the recordings in a folder and in its subfolders, in the order of their names.

    WAV files; FLAC and OGG files by `soundfile`, the extra `audio`.

    Hidden files and folders do not count (`jaxgen.data.folders.files_in`).

    Each file is cut into windows one after another; the last one ends where the file does, and so
    overlaps the one before it. A file shorter than a window is one, with zeros (silence) after it,
    which a likelihood then counts as well.

    Whole files are held out, chosen by a hash of their names (paths within the folder), so that
    another run, machine or `num_samples` has the same split; where no file's hash is low enough,
    the lowest is taken.

    Args:
        path: Folder of the files.
        split: Which files to take: "train", "test" (the held-out files) or "all".
        num_samples: Number T of samples of a window.
        sample_rate: Sample rate in Hz; None takes that of the first file. Files of another rate are
            an error unless they are to be resampled.
        resample: Whether to take files of other rates too, by `scipy.signal.resample_poly`.
        label: How the files are labelled: "none"; "folder", by the subfolder of the folder that the
            file lies in; or "word", by the file's name up to its first "_" ("seven_03.wav" is
            "seven"). The classes of all files are numbered, in alphabetical order, whatever the
            split.
        held_out: Share of the files, roughly, that are held out.

    Returns:
        A source of `audio` int16[T], and of `label` where the files are labelled.

    Raises:
        FileNotFoundError: No such folder, or no recording in it.
        ImportError: FLAC or OGG files without `soundfile`.
        ValueError: A file that cannot be read, holds nothing, or has another sample rate (named);
            a file outside the subfolders with "folder"; one file alone, of which none can be held
            out; an argument out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if sample_rate is not None and sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1 Hz, got {sample_rate}")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must be between 0 and 1, got {held_out}")
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder of recordings {root}")
    files = files_in(root, SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"no recordings ({', '.join(SUFFIXES)}) in {root} or its subfolders"
        )
    classes = None if label == "none" else [_class_of(file, root, label) for file in files]
    class_names = tuple(sorted(set(classes or ())))
    rate = sample_rate or _read(files[0])[1]
    keep = split_by_name([file.relative_to(root).as_posix() for file in files], split, held_out)
    check_memory(f"{len(keep)} windows of {num_samples} samples", 2 * len(keep) * num_samples)
    windows, labels, clipped = [], [], []
    for i in keep:
        audio, num_clipped = _at_rate(files[i], rate, resample)
        clipped += [num_clipped] if num_clipped else []
        windows.append(_windows(audio, num_samples))
        if classes is not None:
            labels += [class_names.index(classes[i])] * len(windows[-1])
    arrays = {"audio": np.concatenate(windows)}
    if classes is not None:
        arrays["label"] = np.asarray(labels, np.int32)
    count = len(arrays["audio"])
    loud = f", {sum(clipped)} samples beyond full scale in {len(clipped)} files clipped"
    return AudioSource(
        arrays,
        sample_rate=rate,
        class_names=class_names,
        name="folder",
        split=split,
        protocol=f"folder of recordings, split {split} by file ({len(keep)} of {len(files)} files, "
        f"{count} windows of {num_samples} samples at {rate} Hz, files shorter than a window "
        f"padded with zeros, the last window of a file overlapping{loud if clipped else ''})",
    )


def read_audio(path: str | Path) -> tuple[Int16[np.ndarray, " time"], int]:
    """A WAV, FLAC or OGG file, its channels averaged, as 16-bit audio.

    WAV files of 8, 16, 24 or 32 bits or of floats; one whose sizes were never filled in, or that is
    cut off, is read to its end. FLAC and OGG files (Vorbis or Opus, which decode to floats) are
    read by `soundfile`, the extra `audio`. Floats beyond full scale, [-1, 1], are clipped, with a
    warning that counts them.

    Args:
        path: Path of the file, whose suffix says its kind.

    Returns:
        (samples int16[T], sample rate in Hz); 16-bit mono as it is.

    Raises:
        ImportError: A FLAC or OGG file without `soundfile`; names the extra.
        ValueError: A file that cannot be read, without a sample, or of which most samples are
            beyond full scale; the message names it.
    """
    samples, rate, num_clipped = _read(Path(path))
    if num_clipped:
        warnings.warn(
            f"{path}: {num_clipped} of {len(samples)} samples beyond full scale are clipped",
            stacklevel=2,
        )
    return samples, rate


def _read(path: Path) -> tuple[np.ndarray, int, int]:
    """(int16 [T], sample rate, number of clipped samples) of a file."""
    raw, rate = (_of_wav if path.suffix.lower() == ".wav" else _by_soundfile)(path)
    if not raw.size or rate < 1:
        raise ValueError(f"the recording {path} holds no samples")
    if raw.dtype == np.int16 and raw.ndim == 1:
        return raw, int(rate), 0
    if raw.dtype == np.uint8:
        x = (raw.astype(np.float64) - 128) / 128
    elif np.issubdtype(raw.dtype, np.integer):  # SciPy puts 24 bits into the upper ones of 32
        x = raw / -float(np.iinfo(raw.dtype).min)
    else:
        x = raw.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"the recording {path} holds NaN or infinite samples")
    samples, num_clipped = _quantized(x if x.ndim == 1 else x.mean(axis=1))
    if num_clipped > len(samples) / 2:
        raise ValueError(
            f"the recording {path} holds floats up to {np.abs(x).max():.6g}, and full scale is 1: "
            "rescale it"
        )
    return samples, int(rate), num_clipped


def _of_wav(path: Path) -> tuple[np.ndarray, int]:
    """(samples [T] or [T, channels] as they are stored, sample rate) of a WAV file."""
    try:
        rate, raw = wavfile.read(io.BytesIO(_with_its_sizes(path.read_bytes())))
    except (ArithmeticError, EOFError, IndexError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read the WAV file {path}: {error}") from error
    except struct.error as error:
        raise ValueError(f"cannot read the WAV file {path}: it is cut off ({error})") from error
    return raw, rate


def _by_soundfile(path: Path) -> tuple[np.ndarray, int]:
    """(samples [T] or [T, channels], int16 where they are stored so and else floats, rate)."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its C library is missing
        raise ImportError(
            f"{path} is read by soundfile: pip install 'jaxgen[audio]' ({error})"
        ) from error
    try:
        with soundfile.SoundFile(path) as file:
            check_memory(f"the recording {path}", 8 * file.frames * file.channels)
            raw = file.read(dtype="int16" if file.subtype == "PCM_16" else "float64")
            return raw, file.samplerate
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read the recording {path}: {error}") from error


def _with_its_sizes(raw: bytes) -> bytes:
    """A WAV file up to the end of its samples, with sizes that it has.

    A recorder or a pipe that cannot go back leaves sizes of 0 or of all ones, and a file that is
    cut off promises more than it has.

    Raises:
        ValueError: No WAV file, or one without a format or samples.
    """
    if raw[:4] not in (b"RIFF", b"RIFX", b"RF64") or raw[8:12] != b"WAVE":
        raise ValueError(f"it begins with {raw[:12]!r}, not as a WAV file")
    order, at, align, long_sizes = ">" if raw[:4] == b"RIFX" else "<", 12, 0, 0
    is_unfilled = raw[4:8] in (bytes(4), b"\xff" * 4)
    while at + 8 <= len(raw):
        name, (size,), start = (
            raw[at : at + 4],
            struct.unpack_from(f"{order}I", raw, at + 4),
            at + 8,
        )
        if name == b"ds64":
            long_sizes = start
        elif name == b"fmt ":
            (align,) = struct.unpack_from(f"{order}H", raw, start + 12)
        elif name == b"data":
            break
        at = start + size + size % 2
    else:
        raise ValueError("it has no samples (no chunk 'data')")
    if not align:
        raise ValueError("it does not say how its samples are stored (no chunk 'fmt ')")
    if raw[:4] == b"RF64":
        (size,) = struct.unpack_from("<Q", raw, long_sizes + 8)
    held = len(raw) - start
    size = held if size > held or (size == 0 and is_unfilled) else size
    size -= size % align
    whole = bytearray(raw[: start + size])
    if raw[:4] == b"RF64":
        struct.pack_into("<QQ", whole, long_sizes, len(whole) - 8, size)
    else:
        struct.pack_into(f"{order}I", whole, 4, len(whole) - 8)
        struct.pack_into(f"{order}I", whole, at + 4, size)
    return bytes(whole)


def to_model_space(
    audio: Shaped[Array, "*dims"], encoding: str = "mu_law", num_values: int = 256
) -> Array:
    """Samples at rest to what a WaveNet sees, a pure function.

    16-bit samples s are `s / 32768` in [-1, 1), mu-law bytes what they decode to. "mu_law" gives
    classes of the companded value (`jaxgen.data.mu_law.mu_law_encode`); with 256 of them, mu-law
    bytes are their own classes. "linear" cuts [-32768, 32768) into `num_values` equal steps and
    gives the place of the step's number n in [-1, 1], `2 n / (num_values - 1) - 1`.

    Args:
        audio: Samples at rest: int16, or uint8 of mu-law classes.
        encoding: Encoding in model space, "mu_law" or "linear".
        num_values: Number of values that a sample can take; for "linear" a power of two, at most
            65,536.

    Returns:
        i32 classes for "mu_law", f32 for "linear", of the shape of `audio`.

    Raises:
        TypeError: Audio of another dtype.
        ValueError: Another encoding, or `num_values` out of range.
    """
    _check_encoding(encoding, num_values)
    if audio.dtype not in (jnp.int16, jnp.uint8):
        raise TypeError(f"audio at rest must be int16, or uint8 of mu-law, got {audio.dtype}")
    is_companded, audio = audio.dtype == jnp.uint8, audio.astype(jnp.int32)
    if encoding == "mu_law":
        if is_companded:
            return audio if num_values == 256 else mu_law_encode(mu_law_decode(audio), num_values)
        return mu_law_encode(audio.astype(jnp.float32) / _FULL_SCALE, num_values)
    if is_companded:
        audio = jnp.round(mu_law_decode(audio) * (_FULL_SCALE - 1)).astype(jnp.int32)
    step = (audio + 32768) // (65536 // num_values)
    return 2.0 * step.astype(jnp.float32) / (num_values - 1) - 1.0


def from_model_space(
    x: Shaped[np.ndarray, "*dims"], encoding: str = "mu_law", num_values: int = 256
) -> Int16[np.ndarray, "*dims"]:
    """What a WaveNet draws, to int16 samples for a file; undoes `to_model_space` up to its steps.

    Args:
        x: Samples in model space: i32 classes for "mu_law", f32 in [-1, 1] for "linear".
        encoding: Encoding in model space, as for `to_model_space`.
        num_values: Number of values that a sample can take, as for `to_model_space`.

    Returns:
        int16 samples, each in the middle of its step.

    Raises:
        ValueError: Another encoding, or `num_values` out of range.
        FloatingPointError: NaN, infinity, or numbers of no class.
    """
    _check_encoding(encoding, num_values)
    is_known = (x >= 0) & (x < num_values) if encoding == "mu_law" else np.isfinite(x)
    if not np.all(is_known):
        raise FloatingPointError(f"x has {np.sum(~is_known)} samples that are no sound: not finite")
    if encoding == "mu_law":
        return _to_int16(np.asarray(mu_law_decode(jnp.asarray(x), num_values)))
    width = 65536 // num_values
    step = np.round((np.asarray(x, np.float64) + 1) / 2 * (num_values - 1))
    return np.clip(step * width + width // 2 - 32768, -32768, 32767).astype(np.int16)


def _quantized(x: np.ndarray) -> tuple[np.ndarray, int]:
    """Samples in [-1, 1] as int16, and how many were beyond that and are clipped."""
    return _to_int16(x), int(np.count_nonzero(np.abs(x) > 1))


def _to_int16(x: np.ndarray) -> np.ndarray:
    scaled = np.round(np.asarray(x, np.float64) * _FULL_SCALE)
    return np.clip(scaled, -32768, 32767).astype(np.int16)


def _check_encoding(encoding: str, num_values: int) -> None:
    if encoding not in ("mu_law", "linear"):
        raise ValueError(f"encoding must be 'mu_law' or 'linear', got {encoding!r}")
    if num_values < 2:
        raise ValueError(f"num_values must be at least 2, got {num_values}")
    if encoding == "linear" and (num_values > 65536 or num_values & (num_values - 1)):
        raise ValueError(f"num_values must be a power of two up to 65536, got {num_values}")


def _class_of(file: Path, root: Path, label: str) -> str:
    if label == "word":
        return file.stem.split("_")[0]
    if label != "folder":
        raise ValueError(f"label must be 'none', 'folder' or 'word', got {label!r}")
    if file.parent == root:
        raise ValueError(f"{file} lies in no subfolder of {root}, so that it has no class")
    return file.relative_to(root).parts[0]


def _at_rate(file: Path, rate: int, resample: bool) -> tuple[np.ndarray, int]:
    """The samples of a file at a rate, and how many of them are clipped."""
    audio, own, num_clipped = _read(file)
    if own == rate:
        return audio, num_clipped
    if not resample:
        raise ValueError(
            f"the recording {file} has a sample rate of {own} Hz, not {rate}: resample the files, "
            "or ask for it (resample=True)"
        )
    common = math.gcd(own, rate)
    up, down = rate // common, own // common
    needed = 8 * (20 * max(up, down) + len(audio) * up // down)  # a filter, and the samples
    check_memory(f"{file}, resampled from {own} to {rate} Hz,", needed)
    audio, more = _quantized(signal.resample_poly(audio / _FULL_SCALE, up, down))
    return audio, num_clipped + more


def _windows(audio: np.ndarray, size: int) -> np.ndarray:
    """int16 [T] -> [windows, size]."""
    if len(audio) < size:
        audio = np.pad(audio, (0, size - len(audio)))
    starts = [*range(0, len(audio) - size, size), len(audio) - size]
    return np.stack([audio[start : start + size] for start in starts])
