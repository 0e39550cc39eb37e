"""Preparing official archives without TensorFlow, and reading them by the stock builders."""

import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxgen.data import prepare as prepare_module
from jaxgen.data.__main__ import main
from jaxgen.data.prepare import PREPARATIONS, prepare
from jaxgen.data.sources import load

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _cifar(seed=0):
    """Five batches of three and a test batch of four: images NHWC and labels."""
    rng = np.random.default_rng(seed)
    sizes = [3] * 5 + [4]
    return [(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n)) for n in sizes]


def _tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _binary_archive(path, batches):
    files = {"cifar-10-batches-bin/batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, (images, labels) in zip(names, batches, strict=True):
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        records = np.concatenate([labels[:, None].astype(np.uint8), flat], axis=1)
        files[f"cifar-10-batches-bin/{name}"] = records.tobytes()
    return _tar(path, files)


class _Python2Pickler(pickle._Pickler):
    """Writes bytes and text alike as Python 2 wrote its strings."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch[bytes] = dispatch[str] = save_string


def _pickled(value):
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def _python_archive(path, batches):
    files = {"cifar-10-batches-py/batches.meta": _pickled({"label_names": NAMES})}
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, (images, labels) in zip(names, batches, strict=True):
        flat = np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))
        batch = {"data": flat, "labels": labels.tolist()}
        files[f"cifar-10-batches-py/{name}"] = _pickled(batch)
    return _tar(path, files)


def _idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def _mnist_files(directory, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for prefix, num in (("train", 12), ("t10k", 5)):
        arrays[prefix] = rng.integers(0, 256, (num, 28, 28), np.uint8), np.arange(num) % 10
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays[prefix], strict=True):
            path = directory / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(_idx(array.astype(np.uint8)))
    return arrays


def _by_bytes(images, labels):
    return {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (_binary_archive, "cifar-10-binary.tar.gz"),
        (_python_archive, "cifar-10-python.tar.gz"),
    ],
)
def test_cifar10_reads_back_by_both_routes(tmp_path, make, file):
    batches, root = _cifar(), tmp_path / "data"
    place = prepare("cifar10", root, [make(tmp_path / file, batches)], verify=False)
    stock = tfds.builder("cifar10", data_dir=root, file_format="array_record")
    assert stock.is_prepared()
    assert Path(stock.data_dir) == place
    assert stock.info.features["label"].names == NAMES
    for split, parts in {"train": batches[:5], "test": batches[5:]}.items():
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        examples = list(stock.as_data_source(split))
        assert len(examples) == len(images)
        for example in examples:
            prefix, number = example["id"].decode().split("_")
            assert prefix == split
            assert len(number) == 5
            np.testing.assert_array_equal(example["image"], images[int(number)])
            assert example["label"] == labels[int(number)]
        source = load("cifar10", split, root)
        batch = source[np.arange(len(source))]
        assert _by_bytes(batch["image"], batch["label"]) == _by_bytes(images, labels)
        assert source.num_classes == 10


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_from_a_directory_or_from_files(tmp_path, name):
    arrays = _mnist_files(tmp_path)
    files = [str(path) for path in sorted(tmp_path.glob("*.gz"))]
    for root, archives in [(tmp_path / "a", [tmp_path]), (tmp_path / "b", files)]:
        prepare(name, root, archives, verify=False)
        for split, prefix in {"train": "train", "test": "t10k"}.items():
            source = load(name, split, root)
            batch = source[np.arange(len(source))]
            assert source.spec["image"][0] == (28, 28, 1)
            assert _by_bytes(batch["image"], batch["label"]) == _by_bytes(*arrays[prefix])
    stock = tfds.builder(name, data_dir=root, file_format="array_record")
    assert len(stock.as_data_source("train")) == 12
    assert [path.name for path in root.iterdir()] == [name]  # nothing else is left behind


def test_a_prepared_set_is_left_alone(tmp_path, capsys):
    archive = _binary_archive(tmp_path / "cifar-10-binary.tar.gz", _cifar())
    place = prepare("cifar10", tmp_path, [archive], verify=False)
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert prepare("cifar10", tmp_path) == place  # and downloads nothing
    assert main(["prepare", "cifar10", "--data-dir", str(tmp_path)]) == 0
    assert f"cifar10 is prepared in {place}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="as tfrecord, and is not overwritten"):
        prepare("cifar10", tmp_path)


def test_a_failure_leaves_nothing(tmp_path):
    batches = _cifar()
    batches[5] = (batches[5][0], np.full(4, 11))  # no class of ten: TFDS stops in mid-writing
    archive = _binary_archive(tmp_path / "cifar-10-binary.tar.gz", batches)
    with pytest.raises(ValueError, match="11"):
        prepare("cifar10", tmp_path / "data", [archive], verify=False)
    assert list((tmp_path / "data").iterdir()) == []


def test_the_checksum_is_verified(tmp_path, monkeypatch):
    archive = _binary_archive(tmp_path / "cifar-10-binary.tar.gz", _cifar())
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"not the official file.*is {digest}, not c4a38c50"):
        prepare("cifar10", tmp_path / "data", [archive])
    preparation = PREPARATIONS["cifar10"]._replace(files={archive.name: digest})
    monkeypatch.setitem(prepare_module.PREPARATIONS, "cifar10", preparation)
    assert prepare("cifar10", tmp_path / "data", [archive]).is_dir()


def test_checksums_are_those_of_tfds():
    directory = Path(tfds.__file__).parent / "url_checksums"
    for name, preparation in PREPARATIONS.items():
        lines = [line.split("\t") for line in (directory / f"{name}.txt").read_text().splitlines()]
        recorded = {url: sha256 for url, _, sha256, *_ in lines}
        assert {preparation.url + file: sha for file, sha in preparation.files.items()} == recorded


def test_archives_that_are_missing_or_broken(tmp_path):
    def attempt(name, *archives):
        prepare(name, tmp_path / "data", archives, verify=False)

    with pytest.raises(FileNotFoundError, match=r"no archive .*nowhere\.tar"):
        attempt("cifar10", tmp_path / "nowhere.tar")
    with pytest.raises(FileNotFoundError, match=r"or cifar-10-python\.tar\.gz alone; missing"):
        attempt("cifar10", tmp_path)
    _mnist_files(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: t10k-labels-idx1-ubyte\.gz"):
        attempt("mnist", tmp_path)
    path = tmp_path / "cifar-10-binary.tar.gz"
    whole = _binary_archive(path, _cifar()).read_bytes()
    for content in (b"nothing", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a valid tar file"):
            attempt("cifar10", path)
    _tar(path, {"cifar-10-batches-py/other": b"1"})
    with pytest.raises(ValueError, match="not a CIFAR-10 archive"):
        attempt("cifar10", path)
    for content, match in [
        (b"nothing", "not a valid gzip file"),
        (_idx(np.zeros(4, np.uint8))[:-9], "not a valid gzip file"),
        (_idx(np.zeros((3, 28, 28), np.uint8)), "not an idx file of 1-dimensional"),
        (_idx(np.zeros(4, np.uint8)), r"images \(5, 28, 28\) and labels \(4,\)"),
    ]:
        (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
        with pytest.raises(ValueError, match=match):
            attempt("mnist", tmp_path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('it ran')",)

    path = tmp_path / "cifar-10-python.tar.gz"
    _tar(path, {"cifar-10-batches-py/batches.meta": pickle.dumps(Evil(), protocol=2)})
    with pytest.raises(ValueError, match=r"it refers to .*exec"):
        prepare("cifar10", tmp_path / "data", [path], verify=False)


def test_a_pickle_builds_no_array_itself(tmp_path):
    """Not one of objects over its own bytes, which would be pointers of the pickle's choice."""
    path = tmp_path / "cifar-10-python.tar.gz"
    meta = {"cifar-10-batches-py/batches.meta": _pickled({"label_names": NAMES})}
    names = [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)]
    arrays = {
        "object": np.ones((2, 3072), object),
        "float": np.ones((2, 3072), np.float32),
        "list": [[1] * 3072] * 2,
    }
    whole = _pickled({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})
    batches = {"forged": whole.replace(b"u1", b"O8")}  # as it is written but for the dtype
    assert batches["forged"] != whole
    for name, array in arrays.items():
        batches[name] = _pickled({"data": array, "labels": [0, 1]})
    batches["labels"] = _pickled({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]})
    messages = {
        "list": "it has no array where one should be",
        "labels": "its labels must be 0 to 9, got 0 to 10",
    }
    for name, batch in batches.items():
        _tar(path, {**meta, **dict.fromkeys(names, batch)})
        match = "not a CIFAR-10 archive: " + messages.get(name, "it has an array of .*, not of u1")
        with pytest.raises(ValueError, match=match):
            prepare("cifar10", tmp_path / "data", [path], verify=False)


def test_archives_of_other_lengths_are_named(tmp_path):
    path = _binary_archive(tmp_path / "cifar-10-binary.tar.gz", _cifar())
    with tarfile.open(path) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    files["cifar-10-batches-bin/test_batch.bin"] += b"1"
    _tar(path, files)
    with pytest.raises(ValueError, match=r"binary\.tar\.gz is not a CIFAR-10 archive: .*reshape"):
        prepare("cifar10", tmp_path / "data", [path], verify=False)
    _mnist_files(tmp_path)
    promised = struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(promised + bytes(100)))
    with pytest.raises(ValueError, match=r"t10k-images.* would take 1568 GiB"):
        prepare("mnist", tmp_path / "data", [tmp_path], verify=False)


class _Server(BaseHTTPRequestHandler):
    directory: Path
    short = False

    def do_GET(self):
        path = self.directory / self.path.lstrip("/")
        if not path.exists():
            self.send_error(404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) + 10 * self.short))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def test_download_with_checksum(tmp_path, monkeypatch):
    files = tmp_path / "served"
    files.mkdir()
    _mnist_files(files)
    handler = type("Handler", (_Server,), {"directory": files})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files.iterdir()}
    preparation = PREPARATIONS["mnist"]._replace(
        url=f"http://127.0.0.1:{server.server_port}/",
        files={file: sums[file] for file in PREPARATIONS["mnist"].files},
    )
    monkeypatch.setitem(prepare_module.PREPARATIONS, "mnist", preparation)
    try:
        prepare("mnist", tmp_path / "data")
        assert len(load("mnist", "train", tmp_path / "data")) == 12
        (files / "t10k-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(ConnectionError, match=r"404.*--archive t10k-labels"):
            prepare("mnist", tmp_path / "other")
        handler.short = True
        with pytest.raises(ConnectionError, match=r"broken off after \d+ of \d+ bytes"):
            prepare("mnist", tmp_path / "other")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ConnectionError, match="could not download"):
        prepare("mnist", tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_other_sets_need_tensorflow(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"svhn_cropped .*pip install 'jaxgen\[tfds-prepare\]'"):
        prepare("svhn_cropped", tmp_path)
    with pytest.raises(ValueError, match="--archive is for cifar10, mnist, fashion_mnist only"):
        prepare("svhn_cropped", tmp_path, [tmp_path])
    with pytest.raises(ValueError, match="no set 'cifr10'"):
        prepare("cifr10", tmp_path)
    assert main(["prepare", "cifr10", "--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_without_tensorflow(tmp_path):
    _mnist_files(tmp_path)
    command = ["prepare", "mnist", "--data-dir", str(tmp_path / "data"), "--archive", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "jaxgen.data", *command], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "is not the official file or is damaged" in done.stderr
    script = (
        "import sys; from jaxgen.data.prepare import prepare;"
        f"prepare('mnist', {str(tmp_path / 'data')!r}, [{str(tmp_path)!r}], verify=False);"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
