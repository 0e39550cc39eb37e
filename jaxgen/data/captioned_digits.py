"""Coloured digits with sentences and attributes: what a model is told, and whether it obeyed.

The embedded digits, 16x16 pixels in colour: "a red seven on a blue ground, top left". All of it
follows from the digit's number, so the set is the same everywhere, and what a picture shows can be
read from it exactly (`read`), but for the digit itself, which needs a classifier.

A fifth of all combinations of digit, colour and ground is in no training picture: a model draws
them only if it has understood the parts.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxgen.data.captions import encode_text
from jaxgen.data.sources import ArraySource, digits

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top right", "bottom left", "bottom right")
ATTRIBUTES = (
    *NUMBERS,
    *COLOURS,
    *(f"{colour} ground" for colour in COLOURS),
    *PLACES,
)
"""Names of the columns of `attributes`: the digit, its colour, the ground's, the place."""
SPLITS = ("train", "test", "unseen")
SIZE, COPIES, CAPTIONS, WIDTH = 16, 4, 2, 64  # pixels; pictures of a digit; sentences; bytes of one
_PALETTE = np.array(
    [[220, 40, 40], [40, 180, 60], [40, 70, 220], [235, 205, 40], [150, 50, 180], [240, 240, 240]],
    np.float64,
)
_CELL = SIZE // 2


class Reading(NamedTuple):
    """What pictures show, or are to show.

    Attributes:
        colour: Index of the digit's colour in `COLOURS`, [N].
        ground: Index of the ground's colour, [N].
        place: Index of the digit's place in `PLACES`, [N].
    """

    colour: Int[np.ndarray, " num"]
    ground: Int[np.ndarray, " num"]
    place: Int[np.ndarray, " num"]


def captioned_digits(split: str = "train") -> ArraySource:
    """The embedded digits in colour, four pictures of each, with sentences and attributes.

    The splits "train" and "test" are of the digits' own splits, in the same combinations of digit,
    colour and ground. The split "unseen" is of the held-out digits in combinations of which there
    is no training picture.

    Args:
        split: Name of the split: "train" (6,000 pictures), "test" or "unseen" (1,188 each).

    Returns:
        A source of `image` [16, 16, 3], `label` (the digit), `attributes` int32 [26] of 0 and 1
        (`ATTRIBUTES`), and `text` uint8 [2, 64]: two sentences in UTF-8, padded with zeros.

    Raises:
        ValueError: Another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split of captioned_digits must be one of {SPLITS}, got {split!r}")
    drawn = digits("train" if split == "train" else "test")
    label = np.repeat(drawn.arrays["label"], COPIES)
    shape = np.repeat(drawn.arrays["image"], COPIES, axis=0)
    shown = _combinations(label, unseen=split == "unseen", seed=SPLITS.index(split))
    sentences = [_sentences(*each) for each in np.stack([label, *shown], axis=1).tolist()]
    return ArraySource(
        {
            "image": _picture(shape, shown),
            "label": label,
            "attributes": attributes_of(label, shown),
            "text": encode_text(sentences, WIDTH),
        },
        name="captioned_digits",
        split=split,
        protocol=f"captioned UCI digits {SIZE}x{SIZE} in colour, split {split} ({len(label)})",
        num_classes=10,
        class_names=NUMBERS,
        attribute_names=ATTRIBUTES,
    )


def is_unseen(
    label: Int[np.ndarray, " num"], colour: Int[np.ndarray, " num"], ground: Int[np.ndarray, " num"]
) -> np.ndarray:
    """Whether a combination is in no training picture, bool [N].

    Each digit, each colour, each ground and each pair of them is in some.
    """
    return (label + 2 * colour + 3 * ground) % 5 == 0


def attributes_of(label: Int[np.ndarray, " num"], shown: Reading) -> Int[np.ndarray, "num 26"]:
    """The attributes of pictures, 0 or 1, in the order of `ATTRIBUTES`.

    Args:
        label: The digits.
        shown: Colours, grounds and places.
    """
    parts = ((label, 10), (shown.colour, 6), (shown.ground, 6), (shown.place, 4))
    return np.concatenate([np.eye(size, dtype=np.int32)[index] for index, size in parts], axis=1)


def asked_for(attributes: Int[np.ndarray, "num 26"]) -> Reading:
    """What pictures are to show by their attributes.

    Args:
        attributes: Attributes, 0 or 1, in the order of `ATTRIBUTES`.
    """
    ends = np.cumsum([len(NUMBERS), len(COLOURS), len(COLOURS)])
    return Reading(*(part.argmax(axis=1) for part in np.split(attributes, ends, axis=1)[1:]))


def read(images: UInt8[np.ndarray, "num height width channels"]) -> Reading:
    """What pictures show, by their colours alone.

    The ground is the colour nearest to the median of all pixels. The place is the quarter that
    differs most from it, and the digit's colour that in whose direction its pixels differ.

    Args:
        images: Pictures, true or drawn by a model.

    Raises:
        ValueError: Pictures of another size.
    """
    if images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images must be [N, {SIZE}, {SIZE}, 3], got {list(images.shape)}")
    x = images.astype(np.float64)
    ground = _nearest(np.median(x.reshape(len(x), -1, 3), axis=1))
    quarters = _quarters(x - _PALETTE[ground][:, None, None])
    size = np.square(quarters).sum(axis=(2, 3))
    place = size.argmax(axis=1)
    pixels = np.take_along_axis(quarters, place[:, None, None, None], axis=1)[:, 0]
    # Of each pixel the share of a colour that explains it best; the colour that leaves least.
    directions = _PALETTE[None] - _PALETTE[ground][:, None]
    squares = np.square(directions).sum(axis=-1)
    share = np.einsum("npc,nkc->npk", pixels, directions) / np.maximum(squares, 1)[:, None]
    explained = np.square(np.clip(share, 0, 1.2)) * squares[:, None]
    left = (
        np.square(pixels[:, :, None] - share.clip(0, 1.2)[..., None] * directions[:, None])
        .sum(axis=-1)
        .sum(axis=1)
    )
    left = np.where(explained.sum(axis=1) > 0, left, np.inf)
    return Reading(left.argmin(axis=1), ground, place)


def cut_out(
    images: UInt8[np.ndarray, "num height width channels"],
) -> UInt8[np.ndarray, "num 8 8 1"]:
    """The digits of pictures as the embedded ones are, white on black, for those who read digits.

    Where a picture goes from its ground's colour to its digit's, by `read`, in its digit's quarter.

    Args:
        images: Pictures, true or drawn by a model.

    Raises:
        ValueError: Pictures of another size.
    """
    colour, ground, place = read(images)
    quarters = _quarters(images.astype(np.float64) - _PALETTE[ground][:, None, None])
    pixels = np.take_along_axis(quarters, place[:, None, None, None], axis=1)[:, 0]
    direction = _PALETTE[colour] - _PALETTE[ground]
    ink = np.einsum("npc,nc->np", pixels, direction)
    ink /= np.maximum(np.square(direction).sum(axis=-1), 1)[:, None]
    return np.round(255 * ink.clip(0, 1)).astype(np.uint8).reshape(-1, _CELL, _CELL, 1)


def _quarters(x: np.ndarray) -> np.ndarray:
    """[N, 16, 16, 3] as [N, 4, 64, 3], by place."""
    quarters = x.reshape(len(x), 2, _CELL, 2, _CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    return quarters.reshape(len(x), 4, _CELL**2, 3)


def _combinations(label: np.ndarray, *, unseen: bool, seed: int) -> Reading:
    """Colours, grounds and places of pictures, at random of those that a split may have."""
    pairs = np.array([(c, g) for c in range(6) for g in range(6) if c != g])
    colour, ground = np.empty_like(label), np.empty_like(label)
    rng = np.random.default_rng(seed)
    for digit in range(10):
        allowed = pairs[is_unseen(np.full(len(pairs), digit), *pairs.T) == unseen]
        rows = np.flatnonzero(label == digit)
        chosen = allowed[rng.integers(len(allowed), size=len(rows))]
        colour[rows], ground[rows] = chosen.T
    return Reading(colour, ground, rng.integers(len(PLACES), size=len(label)).astype(label.dtype))


def _picture(shape: np.ndarray, shown: Reading) -> np.ndarray:
    """Each digit in its quarter: between the ground's colour and its own by its ink."""
    ink = np.zeros((len(shape), SIZE, SIZE, 1))
    for row, place in enumerate(shown.place):
        top, left = _CELL * (place // 2), _CELL * (place % 2)
        ink[row, top : top + _CELL, left : left + _CELL] = shape[row] / 255
    colour, ground = _PALETTE[shown.colour], _PALETTE[shown.ground]
    mixed = ground[:, None, None] + ink * (colour - ground)[:, None, None]
    return np.round(mixed).astype(np.uint8)


def _sentences(label: int, colour: int, ground: int, place: int) -> tuple[str, ...]:
    number, hue, back, where = NUMBERS[label], COLOURS[colour], COLOURS[ground], PLACES[place]
    return (
        f"a {hue} {number} on a {back} ground, {where}",
        f"{where} on {back}: {number} in {hue}",
    )


def _nearest(colours: np.ndarray) -> np.ndarray:
    """Index of the palette's nearest colour, [N]."""
    return np.square(colours[:, None] - _PALETTE).sum(axis=-1).argmin(axis=1)
