"""Image sets of Hugging Face's `datasets`: saved on the disk, or by their name on the hub.

The only module that imports `datasets` (the extra `hf`).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgen.data.folders import named_split
from jaxgen.data.images import Resize
from jaxgen.data.sources import Source
from jaxgen.data.tables import Piece, library, table_source

_SAVED = ("dataset_dict.json", "state.json")
_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*){0,2}")


def hugging_face(
    place: str | Path,
    split: str | None = None,
    *,
    resize: Resize = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
    held_out: float = 0.05,
) -> Source:
    """An image set of Hugging Face's `datasets`, read from the disk at random.

    Args:
        place: Folder that `save_to_disk` has written; or the set's name on the hub, `owner/name` or
            `owner/name/configuration`, which is downloaded once to the cache of `datasets`
            ($HF_HOME). A folder of the name comes first.
        split: Name of the split. A set with no split but "train" is split itself, by a hash of the
            rows' numbers, into "train" and "test" (what is held out); "all" or None for all rows.
        resize: Size, or (height, width), to which every image is center-cropped and resized; None
            requires that all images have one size.
        class_names: Names of the classes where the column holds names; None for all that occur.
        attribute_names: Names of the attributes in their order, those of the training images say;
            None for those that hold for at least one image, sorted.
        held_out: Share of the rows, roughly, that are held out where there is only "train".

    Returns:
        A source of `image`, and where the table has them of `label`, `text` uint8 [captions, bytes]
        and `attributes` int32 [A]; see `jaxgen.data.tables`.

    Raises:
        ImportError: Without `datasets`.
        FileNotFoundError: No such folder, and no such set on the hub, or no way to it; no such
            split.
        ValueError: A folder of something else; a row that cannot be used (names set and row).
    """
    loaded = _loaded(place)
    splits = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
    chosen, part = named_split({name for name in splits if name}, split, str(place))
    names = list(splits) if chosen is None else [chosen]
    pieces = [_piece(place, name, splits[name]) for name in names]
    return table_source(
        pieces,
        "hf",
        split,
        part,
        resize=resize,
        class_names=class_names,
        attribute_names=attribute_names,
        held_out=held_out,
    )


def _loaded(place: str | Path) -> Any:
    """The `Dataset`, or the dictionary of those of its splits."""
    datasets = library("datasets")
    folder = Path(place).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in _SAVED):
            raise ValueError(
                f"{folder} holds no set that `save_to_disk` has written ({' or '.join(_SAVED)}); "
                "--data.name parquet reads parquet files, folder images, shards tar files"
            )
        try:
            return datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the set in {folder} cannot be read: {error}") from error
    if _HUB.fullmatch(str(place)) is None:
        raise FileNotFoundError(f"there is no folder {place}, and no set of that name on the hub")
    owner_and_name, configuration = str(place).split("/")[:2], str(place).split("/")[2:]
    try:
        return datasets.load_dataset("/".join(owner_and_name), *configuration)
    except Exception as error:  # of a dozen kinds, by what the network, the hub or the set lack
        raise FileNotFoundError(
            f"there is no folder {place}, and the hub does not give a set of that name "
            f"({type(error).__name__}: {error}). Without a network, save the set elsewhere by "
            "`datasets.load_dataset(...).save_to_disk(DIR)`, and give --data.name hf --data.dir DIR"
        ) from error


def _piece(place: str | Path, name: str, dataset: Any) -> Piece:
    """The table of a split, as it lies on the disk, with the description of its columns."""
    table = dataset.with_format("arrow")[:]
    table = table.replace_schema_metadata(dataset.features.arrow_schema.metadata)
    return Piece(name, f"{place}, split {name}" if name else str(place), table)
