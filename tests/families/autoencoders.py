"""What the tests of autoencoders share: small families, data, one call of each function."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import conditioning, likelihoods
from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_model_space
from jaxgen.families import autoencoder, vae, vqvae
from jaxgen.models import vae as networks
from jaxgen.models import vqvae as codebooks

LATENT, SHAPE = 3, (8, 8, 1)
CLASSES = conditioning.labels(10)


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
    return vqvae.vqvae(
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


def evaluated(family, params, state, data, seed=0):
    call = jax.jit(lambda *a: family.evaluate(*a, train=False))
    return call(params, state, data, jax.random.key(seed))


def trained_on(family, params, state, data, seed=0):
    call = jax.jit(lambda *a: family.phases[0].loss(*a, train=True))
    return call(params, state, data, jax.random.key(seed))


def logged(family, params, state, data, seed=0):
    return jax.jit(family.log_prob)(params, state, data, jax.random.key(seed))


def moved(family, data, seed=0):
    """Parameters away from their initialization, where biases are zero, and the state."""
    params, state = jax.jit(family.init)(jax.random.key(seed), data)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy), state
