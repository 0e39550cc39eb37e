"""Differentiable augmentation of images, for adversarial training on little data.

Discriminator and generator see real and fake images through the same random transformations, and
the generator's gradient passes back through them (DiffAugment, Zhao et al. 2020).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_choice

_Images = Float[Array, "batch height width channels"]


def diff_augment(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    policy: Sequence[str] = ("color", "translation", "cutout"),
) -> Float[Array, "batch height width channels"]:
    """Transforms each image as the policy says, in order, with random numbers of its own.

        "color"         x + b, then m + s (x - m) with m the mean over a pixel's channels, then
                        m + c (x - m) with m the image's mean; b ~ U[-1/2, 1/2), s ~ U[0, 2),
                        c ~ U[1/2, 3/2): brightness, saturation, contrast
        "translation"   moved by whole pixels, uniform in -n..n for n = round(size / 8), along
                        height and width apart; zeros come in
        "cutout"        zero in a rectangle of round(H / 2) x round(W / 2), its middle anywhere in
                        the image, so that it may stick out

    Zhao et al. 2020, section 3 (DiffAugment), with their implementation's ranges. Zero is mid-gray.
    Colors may leave [-1, 1]: clipping would stop gradients.

        >>> real = fake = jnp.zeros((2, 8, 8, 1))
        >>> discriminate = lambda x: x.mean(axis=(1, 2, 3))
        >>> key_real, key_fake = jax.random.split(jax.random.key(0))
        >>> real_logits = discriminate(diff_augment(key_real, real))
        >>> fake_logits = discriminate(diff_augment(key_fake, fake))

    Args:
        key: PRNG key.
        images: Images in [-1, 1], of any float type, with any number of channels.
        policy: Names of transformations; without any the images stay as they are.

    Returns:
        The transformed images, of the same shape and type.

    Raises:
        ValueError: A name is unknown, or the images are not floats of shape [B, H, W, C].
    """
    if isinstance(policy, str):
        raise ValueError(f"policy must be a sequence of names, such as ({policy!r},), got a string")
    for name in policy:
        check_choice("policy", name, tuple(_TRANSFORMS))
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            "images must be floats of shape [B, H, W, C],"
            f" got {images.dtype} of shape {images.shape}"
        )
    x = jnp.asarray(images, jnp.float32)
    for name, key_transform in zip(policy, jax.random.split(key, len(policy)), strict=True):
        x = _TRANSFORMS[name](key_transform, x)
    return x.astype(images.dtype)


def _color(key: Key[Array, ""], x: _Images) -> _Images:
    u = jax.random.uniform(key, (3 * x.shape[0],)).reshape(3, -1, 1, 1, 1)
    brightness, saturation, contrast = u[0] - 0.5, 2 * u[1], u[2] + 0.5
    # Saturation keeps the image's mean and brightness moves it by b, so all three in one pass.
    gray = jnp.mean(x, axis=3, keepdims=True)
    mean = jnp.mean(gray, axis=(1, 2), keepdims=True)
    return brightness + mean + contrast * (gray - mean + saturation * (x - gray))


def _translation(key: Key[Array, ""], x: _Images) -> _Images:
    height, width = (_part(size, 8) for size in x.shape[1:3])
    key_y, key_x = jax.random.split(key)
    top = jax.random.randint(key_y, x.shape[:1], 0, 2 * height + 1)
    left = jax.random.randint(key_x, x.shape[:1], 0, 2 * width + 1)
    padded = jnp.pad(x, ((0, 0), (height, height), (width, width), (0, 0)))

    def window(image, top, left):
        return jax.lax.dynamic_slice(image, (top, left, 0), x.shape[1:])

    return jax.vmap(window)(padded, top, left)


def _cutout(key: Key[Array, ""], x: _Images) -> _Images:
    inside = []
    for axis, key_axis in zip((1, 2), jax.random.split(key), strict=True):
        size = x.shape[axis]
        extent = _part(size, 2)
        # The middle of an even extent lies between pixels: one more place.
        middle = jax.random.randint(key_axis, x.shape[:1], 0, size + 1 - extent % 2)
        place = jnp.arange(size)[None, :] - middle[:, None] + extent // 2
        inside.append((place >= 0) & (place < extent))
    rows, columns = inside
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(hole, 0, x)


def _part(size: int, divisor: int) -> int:
    """`size / divisor` to the nearest whole, halves up."""
    return (2 * size + divisor) // (2 * divisor)


_TRANSFORMS: Mapping[str, Callable[[Array, Array], Array]] = MappingProxyType(
    {"color": _color, "translation": _translation, "cutout": _cutout}
)
