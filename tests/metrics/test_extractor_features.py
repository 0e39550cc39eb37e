import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen.data.sources import ArraySource, digits
from jaxgen.metrics.features import (
    Extractor,
    as_source,
    extract,
    feature_batches,
    weights_checksum,
)

IMAGES = np.arange(7 * 4 * 4 * 3, dtype=np.uint8).reshape(7, 4, 4, 3)
TRACES = []


def _apply(params, images):
    TRACES.append(images.shape)
    x = jnp.asarray(images, jnp.float32).reshape(len(images), -1) * params
    return {"features": x, "spatial": x[:, :2]}


def _no_check(shape):
    pass


TOY = Extractor(
    "toy", "toy", _apply, np.float32(2), ("features", "spatial"), "none", "0", _no_check
)


def write_images(path, images):
    path.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(path / f"{index}.png")
    return path


def test_every_image_once_in_order_with_one_compilation():
    TRACES.clear()
    outputs = extract(TOY, IMAGES, outputs=("features", "spatial"), batch_size=3)
    np.testing.assert_array_equal(outputs["features"], 2.0 * IMAGES.reshape(7, -1))
    np.testing.assert_array_equal(outputs["spatial"], 2.0 * IMAGES.reshape(7, -1)[:, :2])
    assert TRACES == [(3, 4, 4, 3)]
    assert [len(b["features"]) for b in feature_batches(TOY, IMAGES, batch_size=3)] == [3, 3, 1]
    extract(TOY, IMAGES[:5], outputs=("features", "spatial"), batch_size=3)
    assert len(TRACES) == 2  # once more for the features alone


def test_limit():
    assert len(extract(TOY, IMAGES, batch_size=3, limit=4)["features"]) == 4


@pytest.mark.parametrize("kind", ["array", "source", "npy", "npz", "folder"])
def test_images_from_anywhere(tmp_path, kind):
    path = tmp_path / f"images.{kind}"
    if kind == "npy":
        np.save(path, IMAGES)
    elif kind == "npz":
        np.savez(path, samples=IMAGES)
    elif kind == "folder":
        write_images(path, IMAGES)
    images = {"array": IMAGES, "source": ArraySource({"image": IMAGES})}.get(kind, str(path))
    source = as_source(images)
    np.testing.assert_array_equal(source[np.arange(7)]["image"], IMAGES)


def test_a_folder_may_be_resized(tmp_path):
    write_images(tmp_path / "mixed", [IMAGES[0], IMAGES[1, :2, :2]])
    assert as_source(tmp_path / "mixed", resize=8).spec["image"][0] == (8, 8, 3)
    with pytest.raises(ValueError, match="resize is for folders"):
        as_source(IMAGES, resize=8)


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images"):
        as_source(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"1\.png is 2x2 .* resize="):
        as_source(write_images(tmp_path / "mixed", [IMAGES[0], IMAGES[1, :2, :2]]))
    broken = write_images(tmp_path / "broken", IMAGES)
    whole = (broken / "3.png").read_bytes()
    (broken / "3.png").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(ValueError, match=r"3\.png"):
        extract(TOY, broken)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        as_source(tmp_path / "nowhere")


def test_bad_files_and_arrays(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"nonsense")
    (tmp_path / "b.txt").write_text("nonsense")
    np.savez(tmp_path / "c.npz", weights=IMAGES)
    np.savez(tmp_path / "d.npz", samples=IMAGES)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "e.npy", IMAGES.astype(np.float32))
    with pytest.raises(ValueError, match=r"cannot read images from .*a\.npy"):
        as_source(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a folder, \.npy or \.npz"):
        as_source(tmp_path / "b.txt")
    with pytest.raises(ValueError, match=r"c\.npz: it holds \['weights'\]"):
        as_source(tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"cannot read images from .*d\.npz"):
        as_source(tmp_path / "d.npz")
    with pytest.raises(TypeError, match=r"e\.npy: image must be uint8 .* got float32"):
        as_source(tmp_path / "e.npy")
    with pytest.raises(ValueError, match="is empty"):
        as_source(IMAGES[:0])
    with pytest.raises(ValueError, match="has no images, only"):
        as_source(ArraySource({"label": np.zeros(3, np.int32)}))


def test_bad_outputs(extractor):
    with pytest.raises(ValueError, match=r"outputs of toy must be among .* got \['logits'\]"):
        feature_batches(TOY, IMAGES, outputs=("logits",))
    with pytest.raises(ValueError, match=r"trained on images \(8, 8, 1\).* got \(4, 4, 3\)"):
        feature_batches(extractor, IMAGES)


@pytest.mark.parametrize("row", [0, 2, 3, 6])
def test_an_image_without_finite_features_is_named(row):
    def logarithm(params, images):
        return {"features": jnp.log(jnp.asarray(images[:, 0, 0], jnp.float32))}

    toy = TOY._replace(apply=logarithm, outputs=("features",))
    images = np.full_like(IMAGES, 1)
    images[row] = 0
    with pytest.raises(
        ValueError, match=f"toy makes features with NaN or infinity of image {row}$"
    ):
        extract(toy, images, batch_size=3)


def test_checksum_sees_names_shapes_and_values():
    a = {"x": np.ones((2, 3), np.float32), "y": jnp.zeros(2)}
    assert weights_checksum(a) == weights_checksum(jax.tree.map(jnp.asarray, a))
    others = [
        {**a, "x": a["x"].reshape(3, 2)},
        {"z": a["x"], "y": a["y"]},
        {**a, "y": a["y"] + 1e-7},
    ]
    assert len({weights_checksum(o) for o in [a, *others]}) == 4


def test_digits_through_the_classifier(extractor):
    outputs = extract(extractor, digits("test"), outputs=("features", "logits"), batch_size=100)
    assert outputs["features"].shape == (297, 64)
    assert outputs["logits"].shape == (297, 10)
