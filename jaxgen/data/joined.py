"""A source whose images come from another one, and whose captions, say, lie in memory."""

import functools
from collections.abc import Mapping

import numpy as np

from jaxgen.data.arrays import as_stored, content_of
from jaxgen.data.folders import digest_of
from jaxgen.data.images import Spec
from jaxgen.data.sources import Source


class Joined:
    """The examples of a source with further entries, or with others in the place of its own.

    Args:
        source: Source of the examples.
        arrays: Name -> [N, ...] of the entries, in the order of the source: `text` and `attributes`
            say. They replace entries of the source that have their names.
        num_classes: Number of classes, where the entries have labels; None for the source's.
        attribute_names: Names of the columns of `attributes`; None for the source's.

    Raises:
        ValueError: An entry of another length than the source, or numbers that 32 bits cannot hold.

    Examples:
        >>> from jaxgen.data.sources import digits
        >>> joined = Joined(digits("test"), {"embedding": np.zeros((297, 5), np.float32)})
        >>> joined[np.array([0, 1])]["embedding"].shape
        (2, 5)
    """

    def __init__(
        self,
        source: Source,
        arrays: Mapping[str, np.ndarray],
        *,
        num_classes: int | None = None,
        attribute_names: tuple[str, ...] | None = None,
    ):
        lengths = {key: len(array) for key, array in arrays.items()}
        if any(length != len(source) for length in lengths.values()):
            raise ValueError(f"arrays must have {len(source)} rows, as the source, got {lengths}")
        own = getattr(source, "attribute_names", ())
        self.source = source
        self.arrays = {key: as_stored(array, f"the entry {key!r}") for key, array in arrays.items()}
        self.name = source.name
        self.split = source.split
        self.num_classes = source.num_classes if num_classes is None else num_classes
        self.class_names = source.class_names
        self.attribute_names = own if attribute_names is None else attribute_names

    @property
    def spec(self) -> Spec:
        own = {key: (array.shape[1:], array.dtype) for key, array in self.arrays.items()}
        return {**self.source.spec, **own}

    @functools.cached_property
    def digest(self) -> str:
        return digest_of(
            self.source.digest, self.num_classes, self.attribute_names, content_of(self.arrays)
        )

    @property
    def protocol(self) -> str:
        entries = " and ".join(sorted(self.arrays))
        return f"{self.source.protocol}, with {entries}, content {self.digest}"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        own = {key: array[indices] for key, array in self.arrays.items()}
        return {**self.source[indices], **own}
