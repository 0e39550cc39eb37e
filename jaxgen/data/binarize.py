"""Binary images: by a threshold, by one fixed draw, or by a new draw for each batch.

`threshold` and `dynamic` are pure functions of batches on the device, `static` one of a source.
Each turns bytes into the bytes 0 and 255.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from jaxgen.data.sources import ArraySource, Source, decode


def threshold(image: UInt8[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """255 where a byte is above 127, else 0."""
    return jnp.where(image > 127, 255, 0).astype(jnp.uint8)


def dynamic(key: Key[Array, ""], image: UInt8[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """255 with probability u / 255, exactly, else 0: a new draw for each key."""
    # u of 0..254 is below v with probability v / 255.
    drawn = jax.random.randint(key, (image.size,), 0, 255).reshape(image.shape)
    return jnp.where(drawn < image, 255, 0).astype(jnp.uint8)


def static(source: Source) -> ArraySource:
    """A source whose bytes are 0 or 255, each drawn once with its grey value's probability.

    The draw depends on the names of set and split alone. It is not the fixed draw of Larochelle &
    Murray 2011, which is distributed as files.
    """
    decoded = decode(source)
    rng = np.random.default_rng(zlib.crc32(f"{source.name}/{source.split}".encode()))
    image = decoded.arrays["image"]
    drawn = rng.integers(0, 255, image.shape, np.uint8) < image
    return ArraySource(
        {**decoded.arrays, "image": np.where(drawn, 255, 0).astype(np.uint8)},
        name=source.name,
        split=source.split,
        protocol=source.protocol,
        num_classes=source.num_classes,
        class_names=source.class_names,
        attribute_names=getattr(source, "attribute_names", ()),
    )
