import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest

from jaxgen.metrics.torch_weights import (
    WeightsError,
    check_names,
    fold_batch_norm,
    read_state_dict,
)

torch = pytest.importorskip("torch")
MAGIC = 0x1950A86A20F9469CFC6C  # of the container before PyTorch 1.6


@pytest.fixture
def state():
    """Every kind of tensor that weights come as: views, transposes, scalars, all dtypes."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    kinds = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    tensors = {kind: (base[0] * 5).to(getattr(torch, kind)) for kind in kinds}
    views = {"whole": base, "row": base[2], "turned": base.T, "steps": base[::2, 1::2]}
    others = {
        "scalar": torch.tensor(3),
        "none": torch.zeros(0, 3),
        "grad": torch.nn.Parameter(base),
    }
    return OrderedDict(**tensors, **views, **others)


@pytest.fixture(params=["zip", "legacy"])
def path(request, state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


def test_it_reads_what_pytorch_writes(path, state):
    tensors = read_state_dict(path)
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        expected = tensor.detach().numpy()
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected, strict=True)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_file_is_named(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(WeightsError, match=r"weights\.pth is truncated, broken"):
        read_state_dict(path)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of weights .*nowhere"):
        read_state_dict(tmp_path / "nowhere")
    (tmp_path / "a.pth").write_bytes(b"<html>Not found</html>")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(WeightsError, match=name):
            read_state_dict(tmp_path / name)
    torch.save({"weights": [1, 2]}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="holds under 'weights' no tensor, but list"):
        read_state_dict(tmp_path / "c.pth")
    for wrong in ([torch.zeros(2)], {}):
        torch.save(wrong, tmp_path / "d.pth")
        kind = type(wrong).__name__
        with pytest.raises(WeightsError, match=f"no dictionary of tensors, but {kind}"):
            read_state_dict(tmp_path / "d.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "e.pth")
    with pytest.raises(WeightsError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "e.pth")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_the_file_is_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"x": Harmful()}, protocol))
    with pytest.raises(WeightsError, match="mkdir, which no weights need"):
        read_state_dict("a.pth")
    assert not os.path.exists("harmed")


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    """A file that was tampered with: the tensor's strides lead out of the storage."""
    torch.save({"x": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                changed = data.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86")
                assert changed != data
                data = changed
            new.writestr(name, data)
    with pytest.raises(WeightsError, match="does not fit into its storage"):
        read_state_dict(tmp_path / "b.pth")


class Storage(NamedTuple):
    key: str
    count: int
    kind: type = torch.FloatStorage
    view: tuple | None = None


class Rebuilt:
    """A tensor that is pickled as whoever forges a file likes."""

    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.args, False, OrderedDict())


class Forger(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", obj.kind, obj.key, "cpu", obj.count, obj.view)
        return None


def forged(path, tensors, storages=(), *, legacy=False):
    def pickled(obj):
        file = io.BytesIO()
        Forger(file, 2).dump(obj)
        return file.getvalue()

    if legacy:
        parts = [
            pickled(o) for o in (MAGIC, 1001, {"little_endian": True}, tensors, list(storages))
        ]
        parts += [struct.pack("<q", len(data) // 4) + data for data in dict(storages).values()]
        path.write_bytes(b"".join(parts))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled(tensors))
        for key, data in dict(storages).items():
            archive.writestr(f"a/data/{key}", data)
    return path


ONE = Rebuilt(Storage("0", 1), 0, (4096,), (0,))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Rebuilt(ONE, 0, (4096,), (1,)), "is said to be of _Tensor, not of a storage"),
        (Rebuilt(OrderedDict(), 0, (1,), (1,)), "is said to be of OrderedDict, not of a storage"),
        (Rebuilt(Storage("0", 1), 0, (2**34,), (1,)), "does not fit into its storage"),
        (Rebuilt(Storage("0", 1), -1, (1,), (1,)), "does not fit into its storage"),
        (Rebuilt(Storage("0", 1), 0, (2,), (-1,)), "does not fit into its storage"),
        (Rebuilt(Storage("0", 1), 0, (1.5,), (1,)), "wanted are integers"),
        (Rebuilt(Storage("0", 2), 0, (1,), (1,)), "storage 0 is cut off"),
        (Rebuilt(Storage("0", 2**40), 0, (1,), (1,)), "storage 0 is cut off"),
        (Rebuilt(Storage("0", 1, torch.DoubleStorage), 0, (1,), (1,)), "described in two ways"),
        (Rebuilt(Storage("0", 1, view=("1", 0, 1)), 0, (1,), (1,)), "an unknown object 'storage'"),
    ],
)
def test_what_a_forged_file_cannot_reach(tmp_path, tensor, message, legacy):
    """Bytes beyond its storages, or memory for more than the file has."""
    tensors = {"x": Rebuilt(Storage("0", 1), 0, (1,), (1,)), "y": tensor}
    if "cut off" in message:
        del tensors["x"]
    path = forged(tmp_path / "a.pth", tensors, {"0": bytes(4)}, legacy=legacy)
    with pytest.raises(WeightsError, match=message):
        read_state_dict(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_one_element_may_be_a_whole_tensor(tmp_path, legacy):
    """Strides of 0 are PyTorch's own way to expand."""
    path = forged(tmp_path / "a.pth", {"x": ONE}, {"0": struct.pack("<f", 3)}, legacy=legacy)
    np.testing.assert_array_equal(read_state_dict(path)["x"], np.full(4096, 3, np.float32))


def test_storages_that_are_missing(tmp_path):
    """They have no content, not that of whatever memory there is."""
    tensors = {"x": ONE}
    with pytest.raises(WeightsError, match="storage 0 is missing"):
        read_state_dict(forged(tmp_path / "a.pth", tensors, legacy=True))
    with pytest.raises(WeightsError, match="There is no item named 'a/data/0'"):
        read_state_dict(forged(tmp_path / "b.pth", tensors))


def test_a_small_archive_of_a_large_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    with pytest.raises(WeightsError, match="data.pkl in it would be larger than the file itself"):
        read_state_dict(tmp_path / "a.pth")


def test_an_old_file_whose_storage_has_another_size(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"x": torch.arange(6.0)}, path, _use_new_zipfile_serialization=False)
    whole, six = path.read_bytes(), struct.pack("<q", 6)
    at = whole.rindex(six)
    path.write_bytes(whole[:at] + struct.pack("<q", 5) + whole[at + len(six) :])
    with pytest.raises(WeightsError, match="is cut off"):
        read_state_dict(path)


def test_names_and_shapes():
    weights = {"a": np.zeros(2), "b": np.zeros((2, 3))}
    check_names(weights, {"a": (2,), "b": (2, 3)}, "f")
    with pytest.raises(
        WeightsError, match=r"f holds .* 1 tensors are missing \(c\.\.\.\), 1 unknown"
    ):
        check_names(weights, {"a": (2,), "c": (2, 3)}, "f")
    with pytest.raises(WeightsError, match=r"b has shape \(2, 3\), not \(3, 2\)"):
        check_names(weights, {"a": (2,), "b": (3, 2)}, "f")


def test_folding_is_the_two_layers(key):
    conv, norm = torch.nn.Conv2d(3, 5, 3, bias=False), torch.nn.BatchNorm2d(5, eps=0.01)
    for name in ("running_mean", "running_var", "weight", "bias"):
        torch.nn.init.uniform_(getattr(norm, name), 0.5, 2)
    net = torch.nn.Sequential(OrderedDict(conv=conv, norm=norm)).eval()
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    folded = fold_batch_norm(weights, "conv", "norm", 0.01)
    x = torch.randn(2, 3, 3, 3)
    expected = net(x).detach().numpy()[:, :, 0, 0]
    actual = np.einsum("nchw,hwco->no", x.numpy(), folded["kernel"]) + folded["bias"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
