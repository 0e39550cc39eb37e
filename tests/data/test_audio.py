"""Recordings as windows: formats, rates, splits by file, labels; and the way to model space."""

import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.io import wavfile

from jaxgen.data.audio import audio_folder, from_model_space, read_audio, to_model_space
from jaxgen.distributions.elementwise import NO_CLASS

RATE = 8000


def tone(seconds=0.1, hertz=440.0, rate=RATE):
    """A sine at half of full scale, f64 in [-1, 1]."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path, x=None, rate=RATE, dtype=np.int16):
    x = tone(rate=rate) if x is None else x
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = {np.int16: 2**15, np.int32: 2**31, np.uint8: 128}.get(dtype, 1)
    raw = np.round(x * scale) + 128 if dtype == np.uint8 else x * scale
    wavfile.write(path, rate, raw.astype(dtype))


@pytest.fixture
def folder(tmp_path):
    """Twenty files of 800 samples, in two subfolders, of words "one" and "two"."""
    for i in range(20):
        write(
            tmp_path / "ab"[i % 2] / f"{('one', 'two')[i // 10]}_{i}.wav", tone(hertz=203 + 20 * i)
        )
    return tmp_path


@pytest.mark.parametrize(
    ("dtype", "error"), [(np.int16, 0), (np.int32, 1), (np.uint8, 129), (np.float32, 1)]
)
def test_formats(tmp_path, dtype, error):
    write(tmp_path / "x.wav", dtype=dtype)
    audio, rate = read_audio(tmp_path / "x.wav")
    assert audio.dtype == np.int16
    assert rate == RATE
    assert np.abs(audio.astype(int) - (tone() * 2**15).astype(np.int16)).max() <= error


def test_24_bits(tmp_path):
    """Written byte by byte: SciPy cannot."""
    values = (tone() * 2**23).astype("<i4")
    body = values.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    write(tmp_path / "x.wav", np.zeros(4))
    header = bytearray((tmp_path / "x.wav").read_bytes()[:44])
    header[4:8] = np.uint32(36 + len(body)).tobytes()
    header[28:32] = np.uint32(RATE * 3).tobytes()
    header[32:36] = np.array([3, 24], "<u2").tobytes()
    header[40:44] = np.uint32(len(body)).tobytes()
    (tmp_path / "x.wav").write_bytes(bytes(header) + body)
    np.testing.assert_allclose(read_audio(tmp_path / "x.wav")[0], tone() * 2**15, atol=1)


def test_channels_are_averaged(tmp_path):
    wavfile.write(tmp_path / "x.wav", RATE, np.array([[100, 300], [-6, -4]], np.int16))
    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav")[0], [200, -5])


def test_windows_cover_each_file(tmp_path):
    """The last ends with the file; a file that is too short is padded with silence."""
    counts = np.arange(1, 26) / 2**15
    write(tmp_path / "a.wav", counts)
    write(tmp_path / "b.wav", counts[:20])
    write(tmp_path / "c.wav", counts[:3])
    audio = audio_folder(tmp_path, "all", num_samples=10).arrays["audio"]
    first = [1, 11, 16, 1, 11, 1]
    expected = np.array(first)[:, None] + np.arange(10)[None]
    expected[5, 3:] = 0
    np.testing.assert_array_equal(audio, expected)


def test_splits_are_by_file_and_lasting(folder):
    splits = {s: audio_folder(folder, s, num_samples=400) for s in ("train", "test", "all")}
    rows = {s: {row.tobytes() for row in x.arrays["audio"]} for s, x in splits.items()}
    assert len(rows["all"]) == 40
    assert rows["train"] | rows["test"] == rows["all"]
    assert not rows["train"] & rows["test"]
    assert len(splits["test"]) % 2 == 0  # whole files
    # Another window and another file leave each file where it was.
    write(folder / "a" / "another.wav", tone(hertz=1000))
    again = audio_folder(folder, "test", num_samples=800).arrays["audio"]
    new = {row.tobytes() for row in again.reshape(-1, 400)}
    assert rows["test"] <= new
    assert "20 files, 40 windows of 400 samples at 8000 Hz" in splits["all"].protocol


def test_something_is_always_held_out(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.wav")
    for held_out in (1e-9, 1 - 1e-9):
        for split in ("train", "test"):
            source = audio_folder(tmp_path, split, num_samples=800, held_out=held_out)
            assert len(source) == 1


def test_labels(folder):
    by_folder = audio_folder(folder, "all", num_samples=400, label="folder")
    assert by_folder.class_names == ("a", "b")
    np.testing.assert_array_equal(by_folder.arrays["label"], np.repeat([0, 1], 20))
    by_word = audio_folder(folder, "test", num_samples=400, label="word")
    assert by_word.class_names == ("one", "two")  # whatever the split has
    assert by_word.num_classes == 2
    assert set(audio_folder(folder, num_samples=400).arrays) == {"audio"}


def test_hidden_files_are_no_recordings(folder):
    whole = audio_folder(folder, "all", num_samples=400, label="folder")
    (folder / "a" / "._one_0.wav").write_bytes(b"of macOS")
    write(folder / ".trash" / "one_99.wav")
    again = audio_folder(folder, "all", num_samples=400, label="folder")
    assert again.digest == whole.digest
    (folder / "linked").symlink_to(folder / "a")
    assert len(audio_folder(folder, "all", num_samples=400)) == 60


def test_resampling(tmp_path):
    write(tmp_path / "a.wav")
    write(tmp_path / "b.wav", rate=12000)
    with pytest.raises(ValueError, match=r"b\.wav has a sample rate of 12000 Hz, not 8000"):
        audio_folder(tmp_path, "all", num_samples=800)
    with pytest.raises(ValueError, match=r"a\.wav has a sample rate of 8000 Hz, not 16000"):
        audio_folder(tmp_path, "all", num_samples=800, sample_rate=16000)
    source = audio_folder(tmp_path, "all", num_samples=800, resample=True)
    assert source.sample_rate == RATE
    a, b = source.arrays["audio"].astype(float)
    np.testing.assert_allclose(a[50:-50], b[50:-50], atol=150)  # of 16384: the same tone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split must be one of train, test, all, got 'dev'"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"sample_rate": 0}, "sample_rate must be at least 1 Hz"),
        ({"held_out": 1.0}, "held_out must be between 0 and 1"),
        ({"num_samples": 10**13}, "1 windows of 10000000000000 samples would take"),
        ({"sample_rate": 10**12 + 1, "resample": True}, "resampled from 8000 to 1000000000001 Hz"),
        ({"label": "speaker"}, "label must be 'none', 'folder' or 'word'"),
        ({"split": "test"}, r"x\.wav is the only file, so none can be held out"),
        ({"label": "folder"}, "lies in no subfolder"),
    ],
)
def test_bad_options(tmp_path, options, message):
    write(tmp_path / "x.wav")
    with pytest.raises(ValueError, match=message):
        audio_folder(tmp_path, **{"split": "all", "num_samples": 100, **options})


@pytest.mark.parametrize("kind", [b"RIFF", b"RIFX", b"RF64"])
@pytest.mark.parametrize("size", [0, 2**32 - 1, 2**31, 200])
def test_sizes_that_were_never_filled_in(tmp_path, kind, size):
    """A recorder that was cut off, or a pipe: the file is read to its end, in whole samples."""
    order = ">" if kind == b"RIFX" else "<"
    samples = np.arange(100, dtype=f"{order}i2")
    stated = 2**32 - 1 if kind == b"RF64" else size
    head = kind + struct.pack(f"{order}I", stated) + b"WAVE"
    if kind == b"RF64":
        head += b"ds64" + struct.pack("<IQQQI", 28, size, size, 0, 0)
    head += b"fmt " + struct.pack(f"{order}IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    head += b"data" + struct.pack(f"{order}I", stated)
    (tmp_path / "a.wav").write_bytes(head + samples.tobytes() + b"\1")
    audio, rate = read_audio(tmp_path / "a.wav")
    assert rate == RATE
    np.testing.assert_array_equal(audio, np.arange(100))


def test_what_is_clipped_is_said(tmp_path):
    """Full scale itself is not; floats of another scale are no recording."""
    loud = np.zeros(100, np.float32)
    loud[:4] = (1.0, -1.0, 1.5, -2.0)
    wavfile.write(tmp_path / "a.wav", RATE, loud)
    with pytest.warns(UserWarning, match=r"a\.wav: 2 of 100 samples beyond full scale are clipped"):
        audio, _ = read_audio(tmp_path / "a.wav")
    np.testing.assert_array_equal(audio[:5], [32767, -32768, 32767, -32768, 0])
    protocol = audio_folder(tmp_path, "all", num_samples=50).protocol
    assert "overlapping, 2 samples beyond full scale in 1 files clipped), content" in protocol
    wavfile.write(tmp_path / "a.wav", RATE, 32767 * tone().astype(np.float32))
    with pytest.raises(
        ValueError, match=r"a\.wav holds floats up to 16383\.5, and full scale is 1"
    ):
        read_audio(tmp_path / "a.wav")


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder of recordings .*nowhere"):
        audio_folder(tmp_path / "nowhere", num_samples=10)
    with pytest.raises(FileNotFoundError, match=r"no recordings \(\.wav, \.flac, \.ogg\) in"):
        audio_folder(tmp_path, num_samples=10)
    for name, data in (("text", b"words"), ("empty", b""), ("cut", b"RIFF\x24\0\0\0WAVEfmt ")):
        path = tmp_path / f"{name}.wav"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"cannot read the WAV file .*{name}\.wav"):
            read_audio(path)
    wavfile.write(tmp_path / "none.wav", RATE, np.zeros(0, np.int16))
    with pytest.raises(ValueError, match=r"none\.wav holds no samples"):
        read_audio(tmp_path / "none.wav")
    wavfile.write(tmp_path / "nan.wav", RATE, np.full(3, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"nan\.wav holds NaN"):
        read_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize("name", ["x.flac", "x.OGG"])
def test_compressed_files(tmp_path, name):
    """FLAC is exact, in stereo the mean; of OGG the tone is kept. What is damaged is named."""
    soundfile = pytest.importorskip("soundfile", reason="FLAC and OGG need the extra audio")
    path = tmp_path / name
    x = np.round(tone() * 2**15).astype(np.int16)
    soundfile.write(path, x, RATE, format=path.suffix[1:].upper())
    audio, rate = read_audio(path)
    assert (audio.dtype, rate) == (np.int16, RATE)
    if path.suffix == ".flac":
        np.testing.assert_array_equal(audio, x)
        soundfile.write(path, np.stack([x, -x], axis=1), RATE)
        assert not read_audio(path)[0].any()
        soundfile.write(path, x / 2**15, RATE, subtype="PCM_24")
        np.testing.assert_array_equal(read_audio(path)[0], x)
    else:
        assert np.corrcoef(audio[: len(x)], x)[0, 1] > 0.99
    source = audio_folder(tmp_path, "all", num_samples=100)
    assert (source.sample_rate, source.arrays["audio"].shape[1]) == (RATE, 100)
    path.write_bytes(b"words")
    with pytest.raises(ValueError, match=f"cannot read the recording .*{name}"):
        read_audio(path)
    soundfile.write(path, x[:0], RATE, format=path.suffix[1:].upper())
    with pytest.raises(ValueError, match="x"):
        read_audio(path)


def test_compressed_files_without_soundfile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "x.flac").write_bytes(b"fLaC")
    with pytest.raises(ImportError, match=r"x\.flac is read by soundfile: pip install 'jax"):
        read_audio(tmp_path / "x.flac")


EVERY = np.arange(-32768, 32768).astype(np.int16)


def test_linear_steps():
    """All 16 bits are kept; fewer values are the upper bits, back in the middle of their step."""
    x = to_model_space(jnp.asarray(EVERY), "linear", 65536)
    assert x.dtype == jnp.float32
    assert (x.min(), x.max()) == (-1, 1)
    np.testing.assert_array_equal(from_model_space(np.asarray(x), "linear", 65536), EVERY)
    x = to_model_space(jnp.asarray(EVERY), "linear", 256)
    np.testing.assert_array_equal(np.round((np.asarray(x) + 1) * 127.5), np.repeat(range(256), 256))
    back = from_model_space(np.asarray(x), "linear", 256)
    np.testing.assert_array_equal(back, EVERY // 256 * 256 + 128)


def test_mu_law():
    """256 classes come back as themselves, and mu-law bytes at rest are these classes."""
    classes = to_model_space(jnp.asarray(EVERY))
    assert classes.dtype == jnp.int32
    assert np.unique(classes).size == 256
    back = from_model_space(np.asarray(classes))
    np.testing.assert_array_equal(to_model_space(jnp.asarray(back)), classes)
    error = np.abs(back.astype(int) - EVERY)
    assert (error <= 64 + 0.03 * np.abs(EVERY.astype(int))).all()
    raw = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(to_model_space(raw), raw)
    coarse = to_model_space(raw, "mu_law", 16)
    assert (coarse.min(), coarse.max()) == (0, 15)
    linear = to_model_space(raw, "linear", 65536)
    np.testing.assert_allclose(
        from_model_space(np.asarray(linear), "linear", 65536),
        from_model_space(np.arange(256)),
        atol=1,
    )


@pytest.mark.parametrize("x", [[0.0, np.nan], [np.inf, 0.0], [NO_CLASS, 3], [256, 0], [-1, 255]])
def test_what_is_not_finite_is_no_sound(x):
    x = np.array(x)
    encoding = "linear" if x.dtype == float else "mu_law"
    with pytest.raises(FloatingPointError, match="x has 1 samples that are no sound"):
        from_model_space(x, encoding)


def test_bad_encodings():
    audio = jnp.zeros(4, jnp.int16)
    with pytest.raises(TypeError, match="must be int16, or uint8 of mu-law, got float32"):
        to_model_space(audio.astype(jnp.float32))
    with pytest.raises(ValueError, match="encoding must be"):
        to_model_space(audio, "a_law")
    with pytest.raises(ValueError, match="num_values must be a power of two"):
        from_model_space(np.zeros(4), "linear", 100)
    with pytest.raises(ValueError, match="num_values must be at least 2"):
        to_model_space(audio, "mu_law", 1)
