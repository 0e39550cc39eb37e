"""What is drawn without a name gets the next number; nothing is overwritten."""

import numpy as np
import pytest

from jaxgen.training import outputs
from jaxgen.training.experiment import IMAGES, VECTORS

IMAGE = np.zeros((2, 8, 8, 1), np.uint8)


def drawn(run_dir, name="samples", out=None, samples=IMAGE, medium=IMAGES):
    outputs.check(out, run_dir, medium)
    return outputs.write(out, run_dir, name, samples, None, medium)


def test_numbers_go_on(tmp_path):
    assert [drawn(tmp_path).name for _ in range(2)] == ["samples_001.png", "samples_002.png"]
    (tmp_path / "drawn" / "samples_041.npz").touch()
    (tmp_path / "drawn" / "samples_old.png").touch()
    assert drawn(tmp_path) == tmp_path / "drawn" / "samples_042.png"
    assert drawn(tmp_path, "interpolation").name == "interpolation_001.png"
    assert drawn(tmp_path, "interpolation_linear").name == "interpolation_linear_001.png"
    assert drawn(tmp_path, "interpolation").name == "interpolation_002.png"


def test_what_has_no_picture_is_kept_as_it_is(tmp_path):
    path = drawn(tmp_path, samples=np.ones((3, 2), np.float32), medium=VECTORS)
    assert path.name == "samples_001.npz"
    assert np.array_equal(np.load(path)["samples"], np.ones((3, 2)))


def test_a_sound_and_its_picture_have_one_number(tmp_path):
    heard = IMAGES._replace(
        unit="recordings", suffix=".wav", save=lambda path, samples: path.write_bytes(b"RIFF")
    )
    (tmp_path / "drawn").mkdir()
    for number in ("001", "002"):
        assert drawn(tmp_path, medium=heard).name == f"samples_{number}.wav"
        assert (tmp_path / "drawn" / f"samples_{number}.png").exists()


def test_named_outputs(tmp_path):
    assert sorted(p.name for p in drawn(tmp_path, out=tmp_path / "each").iterdir()) == [
        "00000.png",
        "00001.png",
    ]
    assert drawn(tmp_path, out=tmp_path / "grid.png") == tmp_path / "grid.png"
    assert drawn(tmp_path, out=tmp_path / "LARGE.PNG").exists()  # by the name that is given
    for out in (tmp_path / "each", tmp_path / "grid.png"):
        with pytest.raises(FileExistsError):
            drawn(tmp_path, out=out)
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match="is no writable directory"):
        outputs.check(None, tmp_path / "file", IMAGES)
