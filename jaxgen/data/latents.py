"""Latents of a whole set, computed once: data of a second stage, without calls of the first one.

Examples:
    encode = jax.jit(lambda fixed, raw: codec.encode(fixed, prepare(key, raw, False), key)["image"])
    latents = cache_latents(
        lambda raw: encode(codec.fixed, raw), load("cifar10"), "cifar10_codes.npz",
        batch_size=256, first_stage=f"vqvae_cifar {fingerprint}",
    )
    pipeline, prepare = Pipeline(latents, 128, seed=0), prepare_latents()
    family = on_latents(second_stage, codec, cached=True)

Or, where the examples themselves are needed beside them (to measure samples, to show
reconstructions), `WithLatents(load("cifar10"), latents)`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data.arrays import read_npz
from jaxgen.data.folders import digest_of
from jaxgen.data.joined import Joined
from jaxgen.data.pipeline import eval_batches
from jaxgen.data.sources import ArraySource, Source
from jaxgen.files import open_atomically

LATENTS = "latents"
_IDENTITY = "identity"


def cache_latents(
    encode: Callable[[dict[str, np.ndarray]], Any],
    source: Source,
    path: str | Path | None = None,
    *,
    batch_size: int,
    first_stage: str,
    replaces: tuple[str, ...] = ("image",),
) -> ArraySource:
    """The latents of a source's examples, in its order, computed once and kept in memory.

    With a path they are kept in an `.npz` file as well: written whole or not at all, and read
    instead of computed if they are of the same set, split, preprocessing and first stage.

    Args:
        encode: Function from a batch as the source has it to its latents [B, ...]. It is called
            with batches of one size, the last one padded. Compile it with the first stage's arrays
            as arguments.
        source: Source of the examples.
        path: Path of the file, or None for no file.
        batch_size: Number of examples in a call of `encode`.
        first_stage: Text that identifies the first stage: a run's fingerprint, say.
        replaces: Entries of the source that the latents replace; the others (labels, attributes)
            are passed on.

    Returns:
        A source of `latents` and the entries passed on, whose protocol names the source's and the
        first stage.

    Raises:
        ValueError: A file of other latents (both are named) or of no latents; a source with an
            entry `latents` of its own; an empty source or a batch size below 1.
    """
    kept = [name for name in source.spec if name not in replaces]
    if LATENTS in kept:
        raise ValueError(f"the source {source.name!r} must have no entry {LATENTS!r} of its own")
    identity = f"latents of [{source.protocol}] by {first_stage}"
    file = None if path is None else Path(path)
    if file is not None and file.exists():
        arrays = _read(file, identity, {LATENTS, *kept})
    else:
        arrays = _compute(encode, source, batch_size, kept)
        if file is not None:
            stored: dict[str, Any] = {**arrays, _IDENTITY: np.array(identity)}
            with open_atomically(file) as stream:
                np.savez(stream, **stored)
    return ArraySource(
        arrays,
        name=f"latents of {source.name}",
        split=source.split,
        protocol=identity,
        num_classes=source.num_classes if "label" in arrays else None,
        class_names=source.class_names if "label" in arrays else (),
        attribute_names=getattr(source, "attribute_names", ()) if "attributes" in arrays else (),
    )


def prepare_latents(entry: str = "image") -> Callable[[Any, Mapping[str, Any], bool], Any]:
    """`(key, raw batch, train) -> batch`, the latents by the name that the second stage reads.

    Args:
        entry: Name of the entry that the second stage reads.
    """

    def prepare(key: Any, raw: Mapping[str, Any], train: bool) -> dict[str, Any]:
        others = {name: values for name, values in raw.items() if name != LATENTS}
        return {**others, entry: raw[LATENTS]}

    return prepare


class WithLatents(Joined):
    """The examples of a source and their latents, the entry `latents`.

    Its digest is of the examples and of what identifies the first stage, and not of the latents'
    last bits, which are another machine's own.

    Args:
        source: Source of the examples.
        latents: Their latents, as `cache_latents` gives them.
        first_stage: Text that identifies the first stage.

    Raises:
        ValueError: Latents of another number of examples.
    """

    def __init__(self, source: Source, latents: ArraySource, first_stage: str):
        super().__init__(source, {LATENTS: latents.arrays[LATENTS]})
        self.first_stage = first_stage

    @property
    def digest(self) -> str:  # type: ignore[override]
        return digest_of(self.source.digest, self.first_stage)

    @property
    def protocol(self) -> str:
        return f"{self.source.protocol}, with latents by {self.first_stage}"


def _compute(
    encode: Callable[[dict[str, np.ndarray]], Any], source: Source, batch_size: int, kept: list[str]
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (LATENTS, *kept)}
    for batch in eval_batches(source, batch_size):
        num = int(batch.pop("weight").sum())  # the padding comes last
        batch = {name: np.asarray(values) for name, values in batch.items()}
        for name, values in {LATENTS: encode(batch), **{k: batch[k] for k in kept}}.items():
            parts[name].append(np.asarray(values)[:num])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _read(path: Path, identity: str, names: set[str]) -> dict[str, np.ndarray]:
    """The arrays of a file, if they are those of `identity`."""
    try:
        arrays = read_npz(path)
    except ValueError as error:
        raise ValueError(f"{path} is no file of latents: {error}") from None
    if _IDENTITY not in arrays:
        raise ValueError(f"{path} is no file of latents: it has {sorted(arrays)}")
    stored = str(arrays.pop(_IDENTITY))
    if stored != identity:
        raise ValueError(f"{path} holds {stored}, needed are {identity}: name another file")
    if set(arrays) != names:
        raise ValueError(f"{path} has the entries {sorted(arrays)}, needed are {sorted(names)}")
    return arrays
