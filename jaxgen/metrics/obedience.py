"""Whether pictures show what was asked for: attributes that hold, captions that fit.

What a picture shows is read by something that had no part in making it: a classifier trained on
real pictures (`jaxgen.metrics.classifier`), a dual encoder (`jaxgen.families.dual_encoder`), or a
rule. Beside each number belong its ceiling, what real held-out pictures score, and its floor, what
the samples score for conditions that others were asked for (`shuffled`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxgen.metrics.checks import check_pair


class AttributeScores(NamedTuple):
    """How far pictures have the attributes that were asked for.

    Attributes:
        accuracy: Share of the pictures on which an attribute holds or lacks as asked, by its name.
        f1: Harmonic mean of precision and recall, by name; only of attributes that were asked for
            in some and not in all pictures.
        groups: Share of the pictures that show the one asked for of attributes that exclude each
            other, by the group's name.
        exact: Share of the pictures that are right in everything.
        num: Number of pictures.
    """

    accuracy: dict[str, float]
    f1: dict[str, float]
    groups: dict[str, float]
    exact: float
    num: int


def attribute_scores(
    evidence: Float[np.ndarray, "..."],
    asked: Int[np.ndarray, "..."],
    names: Sequence[str],
    groups: Mapping[str, Sequence[int]] = {},
) -> AttributeScores:
    """Accuracy and F1 of attributes, and of groups of which one alone holds.

    Args:
        evidence: How much each picture shows an attribute, [N, A]: it holds where this is positive,
            and of a group the one with the greatest. A classifier's logits, say.
        asked: The attributes that were asked for, 0 or 1, [N, A].
        names: Names of the attributes.
        groups: Columns of attributes that exclude each other, by the group's name
            (`exclusive_groups`); none by default.

    Raises:
        ValueError: Arrays of different shapes, no pictures, another number of names, evidence that
            is not finite, or pictures that were not asked for exactly one of a group.

    Examples:
        >>> evidence, asked = np.array([[2.0, -1.0], [-3.0, -1.0]]), np.array([[1, 0], [0, 1]])
        >>> attribute_scores(evidence, asked, ("hat", "beard")).accuracy
        {'hat': 1.0, 'beard': 0.5}
    """
    if evidence.shape != asked.shape or not len(asked):
        raise ValueError(
            "evidence and asked must have one shape [N, A] with pictures, got "
            f"{list(evidence.shape)} and {list(asked.shape)}"
        )
    if len(names) != asked.shape[1]:
        raise ValueError(f"names must be {asked.shape[1]}, got {len(names)}")
    if not np.isfinite(evidence).all():
        raise ValueError("evidence must be finite")
    shown = evidence > 0
    for columns in map(list, groups.values()):
        if (asked[:, columns].sum(axis=1) != 1).any():
            raise ValueError(
                "each picture must be asked for exactly one of a group, "
                f"{', '.join(names[c] for c in columns)}"
            )
        shown[:, columns] = np.eye(len(columns), dtype=bool)[evidence[:, columns].argmax(axis=1)]
    right = shown == (asked == 1)
    return AttributeScores(
        accuracy={name: float(right[:, i].mean()) for i, name in enumerate(names)},
        f1={
            name: _f1(shown[:, i], asked[:, i] == 1)
            for i, name in enumerate(names)
            if 0 < asked[:, i].sum() < len(asked)
        },
        groups={
            group: float(right[:, list(columns)].all(axis=1).mean())
            for group, columns in groups.items()
        },
        exact=float(right.all(axis=1).mean()),
        num=len(asked),
    )


def exclusive_groups(
    attributes: Int[np.ndarray, "num attributes"], names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Groups of two or more attributes of which each example has exactly one, such as colours.

    A group is named by what its members' names have in common, else by the first of them and "...".

    Args:
        attributes: Attributes of examples, 0 or 1.
        names: Names of the attributes.
    """
    x = np.asarray(attributes, bool)
    groups, left = {}, [i for i in range(x.shape[1]) if 0 < x[:, i].sum() < len(x)]
    while left:
        first, *left = left
        others = _cover(x, [i for i in left if not (x[:, i] & x[:, first]).any()], x[:, first])
        if others is not None:
            group = tuple(sorted((first, *others)))
            groups[_common([names[i] for i in group])] = group
            left = [i for i in left if i not in group]
    return groups


def _cover(
    x: Bool[np.ndarray, "num attributes"], candidates: Sequence[int], covered: np.ndarray
) -> tuple[int, ...] | None:
    """Columns of candidates, none holding with another, of which one holds wherever none did."""
    if covered.all():
        return ()
    row = int(np.argmin(covered))  # it needs one of what holds there
    for i in (i for i in candidates if x[row, i] and not (x[:, i] & covered).any()):
        rest = _cover(x, [j for j in candidates if j != i], covered | x[:, i])
        if rest is not None:
            return (i, *rest)
    return None


def r_precision(
    images: Float[np.ndarray, "num width"],
    captions: Float[np.ndarray, "num width"],
    distinct: Int[np.ndarray, " num"],
    *,
    candidates: int = 20,
    seed: int = 0,
) -> float:
    """Share of pictures nearer to their own caption than to others', by cosine similarity.

    R-precision with R = 1 (Xu et al. 2018, section 4.1, there with 100 candidates): of a picture's
    candidates one is its caption, the others are drawn from those of other pictures, without what
    says the same. By chance it is 1 / `candidates`.

    Args:
        images: A dual encoder's vectors of the pictures.
        captions: Its vectors of the captions that the pictures were made by, in their order.
        distinct: A number for each caption, the same where captions say the same.
        candidates: Number of captions that a picture is compared with, at least 2.
        seed: Seed of the other captions.

    Raises:
        ValueError: As `check_pair`; fewer candidates than 2, or fewer different captions than that.
        TypeError: Vectors that are not of floating-point numbers.
    """
    images, captions = check_pair(images, captions)
    different = np.unique(distinct)
    if not 2 <= candidates <= len(different):
        raise ValueError(
            f"candidates must be from 2 to the {len(different)} different captions, got "
            f"{candidates}"
        )
    first = {number: row for row, number in reversed(list(enumerate(np.asarray(distinct))))}
    rows = np.array([first[number] for number in different])
    rng, hits = np.random.default_rng(seed), 0.0
    similarity = _unit(images) @ _unit(captions).T
    for i, number in enumerate(np.asarray(distinct)):
        others = rng.choice(rows[different != number], candidates - 1, replace=False)
        own, best = similarity[i, i], similarity[i, others].max()
        hits += float(own > best) + float(own == best) / 2  # equal ones: as by chance of two
    return hits / len(images)


def caption_score(images: Float[np.ndarray, "..."], captions: Float[np.ndarray, "..."]) -> float:
    """Mean cosine similarity of pictures and their captions, in [-1, 1].

    Like CLIPScore (Hessel et al. 2021) without its factor of 2.5 and its floor at 0.

    Args:
        images: A dual encoder's vectors of the pictures, [N, D].
        captions: Its vectors of the captions that the pictures were made by, in their order.

    Raises:
        ValueError: As `check_pair`, or numbers of rows that differ.
        TypeError: Vectors that are not of floating-point numbers.
    """
    images, captions = check_pair(images, captions)
    if len(images) != len(captions):
        raise ValueError(
            f"images and captions must be as many, got {len(images)} and {len(captions)}"
        )
    return float((_unit(images) * _unit(captions)).sum(axis=1).mean())


def shuffled(num: int, seed: int = 0) -> Int[np.ndarray, " num"]:
    """For each of `num` pictures another one, whose condition it was not asked for.

    Args:
        num: Number of pictures, at least 2.
        seed: Seed of the order.

    Raises:
        ValueError: Fewer than two pictures.
    """
    if num < 2:
        raise ValueError(f"num must be at least 2, got {num}")
    order = np.random.default_rng(seed).permutation(num)
    other = np.empty(num, np.int64)
    other[order] = np.roll(order, 1)  # one cycle through all: no picture keeps its own
    return other


def _f1(shown: Bool[np.ndarray, " num"], asked: Bool[np.ndarray, " num"]) -> float:
    return float(2 * (shown & asked).sum() / (shown.sum() + asked.sum()))


def _unit(x: Float[np.ndarray, "num width"]) -> Float[np.ndarray, "num width"]:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _common(names: Sequence[str]) -> str:
    """The words that all names have, or the first name and an ellipsis."""
    words = [name.replace("_", " ").split() for name in names]
    shared = [word for word in words[0] if all(word in other for other in words[1:])]
    return " ".join(shared) or f"{names[0]}, ..."
