"""Words stand beside the rows and above the columns that mean something."""

import numpy as np
import pytest
import toys

from jaxgen.conditioning.attributes import attributes
from jaxgen.conditioning.labels import labels
from jaxgen.training import picture_labels
from jaxgen.training.experiment import IMAGES, VECTORS
from jaxgen.training.images import labelled_grid
from jaxgen.training.picture_labels import Labels, columns_for, of_picture, of_samples

PLAIN = toys.mean_image()
ANIMALS = PLAIN._replace(conditioning=labels(3, ("cat", "dog", "owl")))


@pytest.mark.parametrize(
    ("conditioning", "names"),
    [
        (labels(3), ("0", "1", "2")),
        (labels(2, ("cat", "dog")), ("cat", "dog")),
        (attributes(2, ("red", "big")), ("none", "red", "big")),
        (attributes(2, ("red", "big"), np.array([[0, 1], [1, 1]])), ("the usual", "red", "big")),
    ],
)
def test_each_row_of_a_sweep_has_a_name(conditioning, names):
    assert conditioning.sweep_names == names
    assert len(conditioning.sweep) == len(names)


def test_words_of_pictures():
    assert of_picture(ANIMALS, "conditions", 8, 4) == Labels(("cat", "dog", "owl"))
    guided = of_picture(ANIMALS, "guidance", 8, 3)
    assert guided == Labels(("cat", "dog", "owl"), ("scale 0", "scale 1", "scale 2"))
    between = of_picture(ANIMALS, "between_conditions", 4, 3)
    assert between.rows == ("cat to dog", "dog to owl", "owl to cat", "cat to dog")
    assert of_picture(ANIMALS, "interpolation", 4, 3).rows == ("cat", "dog", "owl", "cat")
    assert of_picture(PLAIN, "interpolation", 4, 3) == Labels()
    assert of_picture(PLAIN, "between_conditions", 4, 3) == Labels()
    assert of_picture(PLAIN, "reconstructions", 4, 3).rows == ("example", "rebuilt") * 2
    assert of_picture(PLAIN, "traversal", 4, 3).heads == ("-3.0", "0.0", "3.0")
    assert of_picture(PLAIN, "image_to_image", 4, 3).heads == ("example", "noise 0.1", "noise 10")
    for name in ("completions", "variations", "image_to_image"):
        assert len(of_picture(PLAIN, name, 4, 1).heads) == 1
    assert of_picture(ANIMALS, "of an experiment's own", 4, 3) == Labels()


def test_words_of_samples_where_a_row_is_of_one_condition():
    names = ANIMALS.conditioning.sweep_names
    assert of_samples(names, 12, 4).rows == ("cat", "dog", "owl")
    assert of_samples(names, 12, 2).rows == ("cat", "cat", "dog", "dog", "owl", "owl")
    assert of_samples(names, 12, 3) == Labels()  # the second row would be of two
    assert of_samples(("red",), 12, 4) == Labels()  # the title says it
    assert of_samples((), 12, 4) == Labels()
    assert columns_for(names, 12) == 4
    assert columns_for(names, 13) == 4  # about a square
    assert columns_for(names, 3) == 2
    assert columns_for((), 9) == 3


def test_a_medium_of_images_alone_has_words():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    made_of = Labels(("cat", "dog"))
    shown = picture_labels.labelled(IMAGES, made_of, "two").picture(images, 1)
    assert np.array_equal(shown, labelled_grid(images, 1, rows=made_of.rows, title="two"))
    assert picture_labels.labelled(VECTORS, made_of) is VECTORS
