"""Images to features: what an extractor is, and how arrays, folders and sources go through one."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.data.arrays import npz_names, read_npy, read_npz
from jaxgen.data.images import Resize, folder
from jaxgen.data.pipeline import eval_batches
from jaxgen.data.sources import ArraySource, Source

_KEYS = ("samples", "images", "image", "arr_0")
Images = np.ndarray | str | Path | Source


class Extractor(NamedTuple):
    """A network whose outputs stand for images, and everything a number from it must name.

    Attributes:
        name: Name of the network and its weights.
        suffix: What the distances are named by, `FD-<suffix>`; empty for the one network of the
            true FID.
        apply: `(params, uint8 [N, H, W, C]) -> {output: f32[N, D]}`, a pure function that compiles;
            it prepares the images too. There is always an output `features`; `logits` and
            `spatial` where the network has them.
        params: Weights of the network.
        outputs: Names of what `apply` returns.
        resizer: How images come to the network's size, in words.
        checksum: SHA-256 of the weights, in hexadecimal.
        check: Raises a ValueError for a shape (H, W, C) that the network cannot see.
        protocol: What else a number must name.
    """

    name: str
    suffix: str
    apply: Callable[[Any, Array], Mapping[str, Array]]
    params: Any
    outputs: tuple[str, ...]
    resizer: str
    checksum: str
    check: Callable[[tuple[int, ...]], None]
    protocol: Mapping[str, Any] = {}


def as_source(images: Images, *, resize: Resize = None) -> Source:
    """Whatever holds images, as a source.

    Args:
        images: Images as uint8 [N, H, W, C]; a source; or a path: a folder of images, a `.npy`
            file, or a `.npz` file whose key is one of `samples`, `images`, `image` and `arr_0`.
        resize: Size or (height, width) that the images of a folder are center-cropped and resized
            to; None for as they are.

    Raises:
        FileNotFoundError: no such path, or a folder without images.
        ValueError: images of several sizes, a broken image or file (named), none of those keys, no
            images at all, `resize` for anything but a folder, or a source without images.
        TypeError: an array that is not uint8 [N, H, W, C].
    """
    is_folder = isinstance(images, str | Path) and Path(images).is_dir()
    if resize is not None and not is_folder:
        raise ValueError("resize is for folders of images; give other images in their final size")
    if isinstance(images, np.ndarray):
        source: Source = ArraySource({"image": images}, name="array")
    elif isinstance(images, str | Path):
        path = Path(images)
        source = folder(path, resize=resize) if is_folder else _read(path)
    else:
        source = images
    if "image" not in source.spec:
        raise ValueError(f"the source {source.name!r} has no images, only {sorted(source.spec)}")
    if len(source) == 0:
        raise ValueError(f"the source {source.name!r} ({source.split}) is empty")
    return source


def _read(path: Path) -> ArraySource:
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder of images {path}")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"images must be a folder, .npy or .npz, got {path}")
    try:
        if path.suffix == ".npy":
            return ArraySource({"image": read_npy(path)}, name=path.name)
        names = npz_names(path)
        key = next((k for k in _KEYS if k in names), None)
        if key is None:
            raise ValueError(f"it holds {names}, none of {list(_KEYS)}")
        return ArraySource({"image": read_npz(path, [key])[key]}, name=path.name)
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"cannot read images from {path}: {error}") from error


def feature_batches(
    extractor: Extractor,
    images: Images,
    *,
    outputs: Sequence[str] = ("features",),
    batch_size: int = 64,
    limit: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Features of images, batch after batch, in the images' order.

    All batches have one size for the network (the last is filled up, and cut again), so it compiles
    once. A batch is read while the one before is computed.

    Args:
        extractor: The network.
        images: Whatever holds images; see `as_source`.
        outputs: Names of the extractor's outputs to return.
        batch_size: Number of images at once.
        limit: Number of images, from the first on; None for all.

    Returns:
        An iterator over {output: f32[n, D]}.

    Raises:
        ValueError: outputs that the extractor does not have; images that it cannot see; numbers out
            of range; from the iterator, outputs that are NaN or infinite. See `as_source` too.
    """
    source = as_source(images)
    missing = [name for name in outputs if name not in extractor.outputs]
    if missing or not outputs:
        raise ValueError(
            f"outputs of {extractor.name} must be among {list(extractor.outputs)}, "
            f"got {list(outputs)}"
        )
    extractor.check(source.spec["image"][0])
    batches = eval_batches(source, batch_size, limit=limit)

    def results() -> Iterator[dict[str, np.ndarray]]:
        pending = None
        seen = 0
        for batch in batches:
            values = _apply(extractor.apply, tuple(outputs), extractor.params, batch["image"])
            if pending is not None:
                yield _to_host(*pending, extractor.name, seen)
                seen += pending[1]
            pending = values, int(batch["weight"].sum())
        assert pending is not None
        yield _to_host(*pending, extractor.name, seen)

    return results()


@partial(jax.jit, static_argnums=(0, 1))
def _apply(apply: Callable[..., Any], outputs: tuple[str, ...], params: Any, images: Array) -> Any:
    values = apply(params, images)
    return {name: values[name] for name in outputs}


def _to_host(
    values: Mapping[str, Array], count: int, name: str, seen: int
) -> dict[str, np.ndarray]:
    arrays = {key: np.asarray(value)[:count] for key, value in values.items()}
    for key, array in arrays.items():
        finite = np.isfinite(array).reshape(count, -1).all(axis=1)
        if not finite.all():
            row = seen + int(np.argmin(finite))
            raise ValueError(f"{name} makes {key} with NaN or infinity of image {row}")
    return arrays


def extract(
    extractor: Extractor,
    images: Images,
    *,
    outputs: Sequence[str] = ("features",),
    batch_size: int = 64,
    limit: int | None = None,
) -> dict[str, np.ndarray]:
    """Features of all images together: {output: f32[N, D]}.

    Arguments and errors are those of `feature_batches`.
    """
    batches = list(
        feature_batches(extractor, images, outputs=outputs, batch_size=batch_size, limit=limit)
    )
    return {name: np.concatenate([batch[name] for batch in batches]) for name in outputs}


def weights_checksum(params: Any) -> str:
    """SHA-256 over the names, shapes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def to_rgb(images: Array) -> Array:
    """uint8 [N, H, W, 1 or 3] to f32[N, H, W, 3], gray in every channel."""
    x = jnp.asarray(images, jnp.float32)
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def check_gray_or_rgb(shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless images of this (H, W, C) are gray or RGB."""
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(f"images must be gray or RGB, [H, W, 1 or 3], got {shape}")
