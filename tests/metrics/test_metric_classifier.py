import numpy as np
import pytest

from jaxgen.data.sources import ArraySource, digits
from jaxgen.metrics.classifier import train_classifier
from jaxgen.metrics.features import extract, weights_checksum


def test_it_learns_and_says_how(extractor):
    protocol = extractor.protocol
    assert protocol["test accuracy"] > 0.95
    assert protocol["steps"] == 200
    assert protocol["training seed"] == 0
    assert "split train" in protocol["trained on"]
    assert "split test" in protocol["tested on"]
    assert extractor.suffix == "classifier"
    assert extractor.checksum == weights_checksum(extractor.params["weights"])


def test_features_have_unit_mean_square(extractor):
    features = extract(extractor, digits("train"), batch_size=500)["features"]
    assert np.mean(np.square(features)) == pytest.approx(1, rel=1e-4)


@pytest.mark.slow
def test_it_is_a_function_of_its_seed():
    one, again, other = (
        train_classifier(digits("test"), steps=2, batch_size=8, num_features=4, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one.checksum == again.checksum != other.checksum
    assert "test accuracy" not in one.protocol


@pytest.mark.slow
def test_images_of_28_pixels():
    images = np.zeros((6, 28, 28, 1), np.uint8)
    source = ArraySource({"image": images, "label": np.arange(6, dtype=np.int32) % 2})
    trained = train_classifier(source, steps=1, batch_size=4)
    assert extract(trained, images, batch_size=4)["features"].shape == (6, 64)


def test_bad_input():
    image = np.zeros((4, 8, 8, 1), np.uint8)
    label = np.zeros(4, np.int32)
    with pytest.raises(ValueError, match="train must have images and labels"):
        train_classifier(ArraySource({"image": image}))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        train_classifier(ArraySource({"image": image, "label": label}))
    for size in (3, 4, 128, 129):  # those between are asked for their classes
        small = ArraySource({"image": np.zeros((4, size, size, 1), np.uint8), "label": label})
        message = "at least 2 classes" if size in (4, 128) else f"4 to 128 .* got {size}x{size}"
        with pytest.raises(ValueError, match=message):
            train_classifier(small)
    with pytest.raises(ValueError, match=r"test must have images \(8, 8, 1\), got \(16, 16, 1\)"):
        train_classifier(digits("train"), digits("test", resize=16))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        train_classifier(digits("train"), steps=0)


def test_it_reads_attributes():
    """Several at once, of images of 40 pixels: brightness above, and below, the middle."""
    rng = np.random.default_rng(0)
    holds = rng.integers(0, 2, (400, 2)).astype(np.int32)
    image = np.repeat(np.repeat(holds, 20, axis=1)[:, :, None, None], 40, axis=2) * 200
    image = (image + rng.integers(0, 50, image.shape)).astype(np.uint8)
    train, test = (
        ArraySource({"image": image[part], "attributes": holds[part]})
        for part in (slice(300), slice(300, None))
    )
    reader = train_classifier(
        train, test, steps=20, batch_size=32, num_features=8, target="attributes"
    )
    assert reader.protocol["test accuracy"] == 1
    logits = extract(reader, test, outputs=("logits",), batch_size=50)["logits"]
    np.testing.assert_array_equal(logits > 0, holds[300:])
    with pytest.raises(ValueError, match="train must have images and attributes"):
        train_classifier(digits("train"), target="attributes")
