"""Images of a known function, for tests of what moves them."""

import jax.numpy as jnp
import numpy as np


def images_of(function, batch, height, width):
    """Images of a function of the place (x, y) from the middle."""
    y, x = np.mgrid[:height, :width]
    values = function(x - (width - 1) / 2, y - (height - 1) / 2)
    return jnp.asarray(np.broadcast_to(values[None, :, :, None], (batch, height, width, 1)), "f4")
