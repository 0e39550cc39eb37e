"""What is kept of a set of images for every metric, and its file, which knows its protocol."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.data.arrays import read_npz
from jaxgen.files import open_atomically
from jaxgen.metrics.features import Extractor, Images, as_source, feature_batches
from jaxgen.metrics.frechet import Moments, merge, moments

_EXTRACTOR = "extractor "  # begins the names of what an extractor's own protocol says


class Statistics(NamedTuple):
    """A set of images as one extractor sees it.

    Attributes:
        moments: Moments of all features.
        features: Features of all images or of a fixed random choice, f32[n, D].
        spatial: Moments of the spatial features, where the extractor has them.
        logits: Logits of the same images as `features`, f32[n, classes], where it has them.
        protocol: What the numbers are of: extractor, weights, resizer, data, counts.
    """

    moments: Moments
    features: np.ndarray
    spatial: Moments | None
    logits: np.ndarray | None
    protocol: Mapping[str, Any]


def image_statistics(
    extractor: Extractor,
    images: Images,
    *,
    limit: int | None = None,
    max_features: int = 50_000,
    spatial: bool = True,
    batch_size: int = 64,
) -> Statistics:
    """Run images through an extractor once and keeps what the metrics need.

    Args:
        extractor: The network.
        images: Whatever holds images; see `as_source`.
        limit: Number of images, from the first on; None for all.
        max_features: Greatest number of images of which features (and logits) are kept, chosen at
            random by a fixed seed; the moments are of all images.
        spatial: Whether the moments of spatial features are kept too, where the extractor has
            them.
        batch_size: Number of images at once.

    Returns:
        The statistics.

    Raises:
        ValueError, TypeError, FileNotFoundError: as `as_source` and `feature_batches`.
    """
    source = as_source(images)
    if max_features < 1:
        raise ValueError(f"max_features must be at least 1, got {max_features}")
    outputs = [n for n in extractor.outputs if n != "spatial" or spatial]
    batches = feature_batches(
        extractor, source, outputs=outputs, batch_size=batch_size, limit=limit
    )
    count = len(source) if limit is None else min(limit, len(source))
    kept = np.zeros(count, bool)
    kept[np.random.RandomState(0).permutation(count)[:max_features]] = True
    totals: dict[str, Moments] = {}
    pieces: dict[str, list[np.ndarray]] = {"features": [], "logits": []}
    seen = 0
    for batch in batches:
        rows = kept[seen : seen + len(batch["features"])]
        seen += len(rows)
        for name, values in batch.items():
            if name != "logits":
                part = moments(values, name=name)
                totals[name] = merge(totals[name], part) if name in totals else part
            if name in pieces:
                pieces[name].append(values[rows])
    return Statistics(
        moments=totals["features"],
        features=np.concatenate(pieces["features"]),
        spatial=totals.get("spatial"),
        logits=np.concatenate(pieces["logits"]) if pieces["logits"] else None,
        protocol=_protocol(extractor, source.protocol, source.spec["image"][0], count, kept),
    )


def extractor_differences(statistics: Statistics, extractor: Extractor) -> list[str]:
    """What of an extractor's protocol statistics were made otherwise by, as words.

    Args:
        statistics: Statistics, also those from a file.
        extractor: The network that they should be of.
    """
    expected = _plain(_extractor_protocol(extractor))
    saved = _plain(statistics.protocol)
    of_extractor = [key for key in saved if key in expected or key.startswith(_EXTRACTOR)]
    return _differences(
        {key: saved[key] for key in of_extractor}, expected, there="theirs", here="the extractor's"
    )


def _extractor_protocol(extractor: Extractor) -> dict[str, Any]:
    return {
        "extractor": extractor.name,
        "weights": extractor.checksum,
        "resizer": extractor.resizer,
        **{f"{_EXTRACTOR}{key}": value for key, value in extractor.protocol.items()},
    }


def _differences(
    saved: Mapping[str, Any], expected: Mapping[str, Any], *, there: str, here: str
) -> list[str]:
    return [
        f"{key}: {saved.get(key)!r} {there}, {expected.get(key)!r} {here}"
        for key in {**saved, **expected}
        if saved.get(key) != expected.get(key)
    ]


def _protocol(
    extractor: Extractor, data: str, shape: tuple[int, ...], count: int, kept: np.ndarray
) -> dict[str, Any]:
    return {
        **_extractor_protocol(extractor),
        "data": data,
        "image": list(shape),
        "count": count,
        "features kept": int(kept.sum()),
    }


def cached_statistics(
    path: str | Path,
    extractor: Extractor,
    images: Images,
    *,
    limit: int | None = None,
    max_features: int = 50_000,
    batch_size: int = 64,
) -> Statistics:
    """`image_statistics`, computed once and kept in a file.

    Args:
        path: Name of a `.npz` file. If it exists it is read and its protocol compared with what
            would be computed; otherwise it is written, whole or not at all, and where it cannot be
            a warning says so.
        extractor: The network.
        images: Whatever holds images; see `as_source`.
        limit: Number of images, from the first on; None for all.
        max_features: Greatest number of images of which features (and logits) are kept.
        batch_size: Number of images at once.

    Returns:
        The statistics.

    Raises:
        ValueError: another suffix; a file that cannot be read; a file of another protocol
            (extractor, weights, resizer, data, counts): says what differs.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {path}")
    source = as_source(images)
    if not path.exists():
        statistics = image_statistics(
            extractor, source, limit=limit, max_features=max_features, batch_size=batch_size
        )
        try:
            save_statistics(path, statistics)
        except OSError as error:
            warnings.warn(f"{path} is not kept: {error}", stacklevel=2)
        return statistics
    count = len(source) if limit is None else min(limit, len(source))
    kept = np.ones(min(count, max_features), bool)
    shape = source.spec["image"][0]
    expected = _plain(_protocol(extractor, source.protocol, shape, count, kept))
    saved = load_statistics(path)
    differing = _differences(saved.protocol, expected, there="there", here="here")
    if differing:
        raise ValueError(
            f"{path} holds statistics of another protocol:\n  "
            + "\n  ".join(differing)
            + "\nName another file, or remove this one"
        )
    return saved


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write statistics and their protocol to a `.npz` file, whole or not at all.

    Args:
        path: Name of the file.
        statistics: What to keep.
    """
    arrays: dict[str, Any] = {"features": statistics.features}
    for name, part in (("moments", statistics.moments), ("spatial", statistics.spatial)):
        if part is not None:
            arrays |= {f"{name}_{key}": np.asarray(v) for key, v in part._asdict().items()}
    if statistics.logits is not None:
        arrays["logits"] = statistics.logits
    with open_atomically(path) as file:
        np.savez(file, protocol=np.asarray(json.dumps(statistics.protocol)), **arrays)


def load_statistics(path: str | Path) -> Statistics:
    """Read what `save_statistics` wrote.

    Args:
        path: Name of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is broken, or something else; names it.
    """
    try:
        arrays = read_npz(path)
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"its {name} holds NaN or infinity")
        return Statistics(
            moments=_moments(arrays, "moments"),
            features=arrays["features"],
            spatial=_moments(arrays, "spatial") if "spatial_num" in arrays else None,
            logits=arrays.get("logits"),
            protocol=json.loads(str(arrays["protocol"])),
        )
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of statistics {path}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as statistics of images: {error!r}") from error


def _moments(arrays: Mapping[str, np.ndarray], name: str) -> Moments:
    return Moments(int(arrays[f"{name}_num"]), arrays[f"{name}_mean"], arrays[f"{name}_scatter"])


def _plain(protocol: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(protocol))
