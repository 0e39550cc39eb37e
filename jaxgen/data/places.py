"""Sets that are named by their kind and their place: `folder:photos`, `hf:owner/name`."""

from typing import Any

PLACED = {
    "folder": "the folder of images",
    "shards": "the folder of tar files",
    "parquet": "the parquet file, or the folder of some",
    "hf": "the folder that `save_to_disk` has written, or the set's name on the hub",
}
"""Kinds of sets that a place is needed of, by their names, and what that place is."""


def name_and_place(name: str, place: Any) -> tuple[str, Any]:
    """The two parts of a name such as "folder:photos", a kind of set and its place.

    Args:
        name: Name of a set, or of a kind and its place.
        place: Place that is given by itself, or None.

    Returns:
        Name and place; of any other name as they are given.

    Raises:
        ValueError: If two places are given, or an empty one.
    """
    kind, colon, inner = name.partition(":")
    if not colon or kind not in PLACED:
        return name, place
    if not inner:
        raise ValueError(f"{name!r} must name {PLACED[kind]} after the colon")
    if place not in (None, inner):
        raise ValueError(
            f"{name!r} and the directory {str(place)!r} are two places of the data: give one, as "
            f"--data.name {kind} --data.dir PLACE"
        )
    return kind, inner
