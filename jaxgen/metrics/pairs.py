"""Images compared with others pair by pair: reconstructions with what they are of.

Images are bytes, or floating-point numbers in [-1, 1]; the numbers are the same for both.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.data.pipeline import eval_batches
from jaxgen.data.sources import ArraySource, Source
from jaxgen.data.transforms import to_model_space
from jaxgen.losses.perceptual import by_lpips
from jaxgen.metrics.checks import check_results
from jaxgen.metrics.features import Images, as_source
from jaxgen.metrics.report import Result
from jaxgen.models.vgg import CHECKSUM, VGG16, Pretrained

_PEAK = 2.0  # of [-1, 1], from black to white


def psnr(images: Images, reference: Images, *, batch_size: int = 64) -> Float[np.ndarray, " N"]:
    """The peak signal-to-noise ratio of each pair, `10 log10(2^2 / mean (x - y)^2)` in dB.

    Args:
        images: Images, as bytes (`as_source`) or an array of [-1, 1], [N, H, W, C].
        reference: Images of the same number and shape, in the same order.
        batch_size: Number of pairs at once.

    Returns:
        float64 [N]; infinite of equal images.

    Raises:
        TypeError, ValueError: As `as_source`; ValueError also for images of another number or
            shape, and for numbers that are not finite or beyond [-1, 1].
    """
    parts = [
        np.square(x.astype(np.float64) - y).reshape(len(x), -1).mean(axis=1)[:num]
        for x, y, num in _pairs(images, reference, batch_size)
    ]
    with np.errstate(divide="ignore"):
        return 10 * np.log10(_PEAK**2 / np.concatenate(parts))


def lpips(
    images: Images, reference: Images, vgg: Pretrained, *, batch_size: int = 64
) -> Float[np.ndarray, " N"]:
    """The learned perceptual distance of each pair (`losses.perceptual.lpips`), by VGG16.

    Zhang et al. 2018, version 0.1. Images are seen as they are, not resized, gray ones in all three
    channels; published figures are of images of 64 pixels or more.

    Args:
        images: Images, as bytes (`as_source`) or an array of [-1, 1], [N, H, W, C], of at least 16
            pixels a side.
        reference: Images of the same number and shape, in the same order.
        vgg: The network with its weights (`load_vgg16`).
        batch_size: Number of pairs at once.

    Returns:
        float32 [N], 0 of equal images.

    Raises:
        TypeError, ValueError: As `psnr`; ValueError also for images that are too small.
    """
    parts = [
        np.asarray(_lpips(vgg.network, vgg.params, vgg.weights, x, y))[:num]
        for x, y, num in _pairs(images, reference, batch_size)
    ]
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=0)
def _lpips(network: VGG16, params: Any, weights: Any, x: Array, y: Array) -> Array:
    # Accelerators would otherwise multiply in fewer bits, and move the distances with it.
    with jax.default_matmul_precision("highest"):

        def features(params: Any, x: Array) -> Any:
            return network.apply({"params": params}, x)

        perceptual = by_lpips(features, params, weights)
        return perceptual.distance(perceptual.fixed, x, y)


def compare_pairs(
    images: Images, reference: Images, vgg: Pretrained | None, *, batch_size: int = 64
) -> Result:
    """PSNR and LPIPS of pairs, each the mean over them with its standard error.

    Args:
        images: Images, as bytes (`as_source`) or an array of [-1, 1], [N, H, W, C].
        reference: Images of the same number and shape, in the same order.
        vgg: The network with its weights, None for PSNR alone.
        batch_size: Number of pairs at once.

    Returns:
        `PSNR`, in dB, and `LPIPS`, each beside its `standard error`, and their protocol.

    Raises:
        TypeError, ValueError: As `lpips`; ValueError also for fewer than two pairs.
        FloatingPointError: Images that are equal, of which there is no PSNR.

    Examples:
        >>> result = compare_pairs(rebuilt, images, load_vgg16())  # doctest: +SKIP
        >>> result.metrics["LPIPS"], result.metrics["LPIPS standard error"]  # doctest: +SKIP
    """
    values = {"PSNR": psnr(images, reference, batch_size=batch_size)}
    num = len(values["PSNR"])
    if num < 2:
        raise ValueError(f"images must be at least 2, got {num}")
    check_results(
        {"PSNR": float(values["PSNR"].max())}, "images must differ from the reference, in each pair"
    )
    if vgg is not None:
        values["LPIPS"] = lpips(images, reference, vgg, batch_size=batch_size)
    metrics = {}
    for name, each in values.items():
        metrics[name] = float(each.mean(dtype=np.float64))
        metrics[f"{name} standard error"] = float(each.std(ddof=1, dtype=np.float64) / num**0.5)
    protocol: dict[str, Any] = {"pairs": num, "PSNR": "mean of each pair's, over all channels"}
    if vgg is not None:
        name = "VGG16 on ImageNet" if vgg.checksum == CHECKSUM else "VGG16, other weights"
        protocol["LPIPS"] = f"version 0.1, {name}, images as they are"
        protocol["weights"] = vgg.checksum
    return Result(metrics, protocol)


def _pairs(
    images: Images, reference: Images, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Batches of both in model space, all of one size, and the number of pairs that count."""
    sources = [_source(name, x) for name, x in (("images", images), ("reference", reference))]
    shapes = [(len(source), *next(iter(source.spec.values()))[0]) for source in sources]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"images and reference must be pairs of one shape, got {shapes[0]} and {shapes[1]}"
        )
    batches = [eval_batches(source, batch_size) for source in sources]
    for x, y in zip(*batches, strict=True):
        yield _in_model_space(x), _in_model_space(y), int(x["weight"].sum())


def _source(name: str, images: Images) -> Source:
    if not isinstance(images, np.ndarray) or images.dtype.kind != "f":
        return as_source(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{name} must be [N, H, W, C], got {list(images.shape)}")
    if not np.abs(images).max() <= 1:  # NaN too
        raise ValueError(f"{name} must be bytes, or finite numbers in [-1, 1]")
    return ArraySource({"pixels": images.astype(np.float32)}, name="array")


def _in_model_space(batch: Any) -> np.ndarray:
    if "pixels" in batch:
        return batch["pixels"]
    return np.asarray(to_model_space(jnp.asarray(batch["image"])))
