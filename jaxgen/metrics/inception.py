"""The extractor of FID, sFID, KID and the Inception score: the network, its weights, its resizing.

The one set of weights that makes a distance "FID" is `pt_inception-2015-12-05-6726825d.pth`, the
PyTorch port of TensorFlow's network of that date (pytorch-fid; torch-fidelity publishes the same).
"""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.files import cache_directory, open_atomically
from jaxgen.metrics.features import Extractor, check_gray_or_rgb, to_rgb
from jaxgen.metrics.torch_weights import WeightsError, folded_params, read_state_dict
from jaxgen.models.inception import SIZE, InceptionV3

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
DIGEST = "6726825d"  # the file is named after the beginning of its SHA-256
RESIZERS = {
    "tensorflow": "bilinear to 299x299 as TensorFlow 1 (corners aligned at 0, no antialiasing; "
    "torch-fidelity), (v - 128) / 128",
    "pytorch": "bilinear to 299x299 as PyTorch (half-pixel centers, no antialiasing; "
    "pytorch-fid), 2 v / 255 - 1",
}
EPSILON = 1e-3
"""What the normalizations add to the variance."""


def inception_extractor(
    path: str | Path | None = None,
    *,
    resizer: str = "tensorflow",
    allow_other_weights: bool = False,
) -> Extractor:
    """The Inception-v3 of FID.

    Args:
        path: File of the weights, `pt_inception-2015-12-05-6726825d.pth`. None looks for it in the
            cache directory (`$JAXGEN_CACHE`, by default `~/.cache/jaxgen`) and downloads it there.
        resizer: Whose resizing it is: "tensorflow", as the original and torch-fidelity, or
            "pytorch", as pytorch-fid. The two give different distances, so it is part of every
            protocol.
        allow_other_weights: Whether weights of the same network with another checksum are taken
            too. Their distances are not named FID but after that checksum.

    Returns:
        An extractor of gray or RGB images with the outputs `features` f32[N, 2048], `logits`
        f32[N, 1008] and `spatial` f32[N, 2023].

    Raises:
        FileNotFoundError: no such file.
        WeightsError: a file that is truncated, broken, or of other weights; names it.
        ValueError: an unknown resizer.
        OSError: the download failed; says where to put the file.
    """
    if resizer not in RESIZERS:
        raise ValueError(f"resizer must be one of {sorted(RESIZERS)}, got {resizer!r}")
    path = _cached() if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of Inception weights {path}")
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    official = checksum.startswith(DIGEST)
    if not official and not allow_other_weights:
        raise WeightsError(
            f"{path} is truncated or not the file {FILE}: its SHA-256 is {checksum}, and should "
            f"begin with {DIGEST}"
        )
    return Extractor(
        name="Inception-v3 of 2015-12-05" if official else "Inception-v3, other weights",
        suffix="" if official else f"inception-{checksum[:8]}",
        apply=_APPLY[resizer],
        params=load_inception(path),
        outputs=("features", "logits", "spatial"),
        resizer=RESIZERS[resizer],
        checksum=checksum,
        check=check_gray_or_rgb,
    )


def load_inception(path: str | Path) -> dict[str, Any]:
    """The variables of `InceptionV3` from a PyTorch file.

    Args:
        path: File of the weights.

    Raises:
        FileNotFoundError, WeightsError: as `read_state_dict`; WeightsError also for tensors of
            another network.
    """
    return {"params": inception_params(read_state_dict(path), path)}


def inception_params(weights: Mapping[str, np.ndarray], path: str | Path) -> dict[str, Any]:
    """The parameters of `InceptionV3`, of those of pytorch-fid's network.

    Args:
        weights: Arrays by pytorch-fid's names.
        path: Name of their file, for errors.

    Raises:
        WeightsError: If they are those of another network.
    """
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    expected = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]
    layers = {
        place: (f"{'.'.join(place)}.conv", f"{'.'.join(place)}.bn")
        for place in _places(expected)
        if place != ("fc",)
    }
    return folded_params(weights, expected, layers, {"fc": "fc"}, path, epsilon=EPSILON)


def _places(tree: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where among the parameters there are layers."""
    if "kernel" in tree:
        return [place]
    return [inner for name, part in tree.items() for inner in _places(part, (*place, name))]


def resize_bilinear(
    image: Float[Array, "batch height width channels"], resizer: str, size: int = SIZE
) -> Float[Array, "batch {size} {size} channels"]:
    """Bilinear interpolation without antialiasing, as "tensorflow" (1.x) or "pytorch" does it.

    Args:
        image: Images of any range.
        resizer: Where a pixel lies: "tensorflow", pixel i of the result at `i * scale`;
            "pytorch", at `(i + 0.5) * scale - 0.5`.
        size: Number of pixels a side of the result.
    """
    rows, columns = (_interpolation(n, size, resizer) for n in image.shape[1:3])
    x = jnp.einsum("oh,nhwc->nowc", rows, image, precision="highest")
    return jnp.einsum("pw,nowc->nopc", columns, x, precision="highest")


def _interpolation(size: int, out: int, resizer: str) -> np.ndarray:
    """f32[out, size], the weights of the pixels of a row in each pixel of the result."""
    index, scale = np.arange(out, dtype=np.float32), np.float32(size / out)
    at = index * scale
    if resizer == "pytorch":
        at = np.maximum((index + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(at.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weights = np.zeros((out, size), np.float32)
    np.add.at(weights, (np.arange(out), low), 1 - (at - low.astype(np.float32)))
    np.add.at(weights, (np.arange(out), high), at - low.astype(np.float32))
    return weights


def _apply_tensorflow(params: Any, images: Array) -> dict[str, Array]:
    x = resize_bilinear(to_rgb(images), "tensorflow")
    return _run(params, (x - 128) / 128)


def _apply_pytorch(params: Any, images: Array) -> dict[str, Array]:
    x = resize_bilinear(to_rgb(images) / 255, "pytorch")
    return _run(params, 2 * x - 1)


_APPLY = {"tensorflow": _apply_tensorflow, "pytorch": _apply_pytorch}


def _run(params: Any, x: Array) -> Any:
    # Accelerators would otherwise multiply in fewer bits, and move the distances with it.
    with jax.default_matmul_precision("highest"):
        return InceptionV3().apply(params, x)


def _cached() -> Path:
    """The file in the cache, downloaded if it is not there."""
    path = cache_directory() / FILE
    if path.exists():
        return path
    try:
        with urllib.request.urlopen(URL, timeout=30) as response, open_atomically(path) as file:
            digest = hashlib.sha256()
            while block := response.read(1 << 20):
                digest.update(block)
                file.write(block)
            if not digest.hexdigest().startswith(DIGEST):
                raise WeightsError(f"the download of {URL} was cut off or is another file")
    except (urllib.error.URLError, OSError) as error:
        raise OSError(
            f"cannot download {URL} ({error}); fetch it elsewhere and give its path, or put it at "
            f"{path}"
        ) from error
    return path
