"""What the tests of transformers over tokens share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import jit

from jaxgen.conditioning.base import Condition

CONDITIONS = {
    "none": None,
    "vector": Condition(jnp.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])),
    "tokens": Condition(
        jnp.ones((2, 3)),
        jax.random.normal(jax.random.key(4), (2, 4, 7)),
        jnp.array([[True, True, False, False], [True] * 4]),
    ),
}


def moved(network, *args):
    """Parameters away from their initial values, at which logits may be zero."""
    params = jit(network.init)(jax.random.key(0), *args)["params"]
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(treedef, [p + 0.3 * rng.normal(size=p.shape) for p in leaves])
