"""What the tests of autoencoders share: small families, data, one call of each function."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_model_space
from jaxgen.distributions import likelihoods
from jaxgen.families import autoencoder, vae, vq
from jaxgen.models import vae as networks
from jaxgen.models import vq as codebooks

LATENT, SHAPE = 3, (8, 8, 1)
CLASSES = labels(10)


def make_vae(likelihood=None, *, optimizer=None, features=(16,), **options):
    likelihood = likelihood or likelihoods.discretized_logistic()
    return vae.vae(
        networks.DenseEncoder(LATENT, features),
        networks.DenseDecoder(SHAPE[:2], likelihood.num_params(1), features),
        likelihood,
        optimizer or optax.adam(3e-3),
        **{"latent_dim": LATENT, "image_shape": SHAPE, "eight_bit": True, **options},
    )


def make_autoencoder(optimizer=None):
    return autoencoder.autoencoder(
        networks.DenseEncoder(LATENT, (16,), stochastic=False),
        networks.DenseDecoder(SHAPE[:2], 1, (16,)),
        optimizer or optax.adam(3e-3),
        latent_dim=LATENT,
        image_shape=SHAPE,
    )


def make_vqvae(optimizer=None, **options):
    likelihood = likelihoods.discretized_logistic()
    return vq.vqvae(
        codebooks.Encoder(4, 4, 1, 0),
        codebooks.Decoder(2, 4, 1, 0),
        likelihood,
        optimizer or optax.adam(3e-3),
        **{"num_codes": 8, "image_shape": SHAPE, "eight_bit": True, **options},
    )


def batch(num=32):
    data = digits("train")[np.arange(num)]
    return {
        "image": to_model_space(jnp.asarray(data["image"])),
        "label": jnp.asarray(data["label"]),
    }


def evaluated(family, variables, data, seed=0):
    """(values, metrics) of `evaluate`."""
    return jax.jit(family.evaluate)(variables, data, jax.random.key(seed))


def trained_on(family, variables, data, seed=0, step=0):
    """(values, aux) of the training loss."""
    call = jax.jit(family.phases[0].loss)
    return call(variables, data, jax.random.key(seed), jnp.int32(step))


def logged(family, variables, data, seed=0):
    """Values of `log_prob`."""
    return jax.jit(family.log_prob)(variables, data, jax.random.key(seed))


def moved(family, data, seed=0):
    """Variables whose parameters are away from their initialization, where biases are zero."""

    @jax.jit
    def make(data):
        variables = family.init(jax.random.key(seed), data)
        leaves, tree = jax.tree.flatten(variables.params)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        noisy = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
        return Variables(jax.tree.unflatten(tree, noisy), variables.state, variables.fixed)

    return make(data)
