"""Networks of GANs that compile quickly, and families of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen.conditioning.base import vector_of
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.families import gan
from jaxgen.models import dcgan, resnet_gan
from jaxgen.models.blocks.gan_layers import Verdict

LATENT = 4
CLASSES = labels(3)
FIRST = jnp.int32(0)


class PlainGenerator(nn.Module):
    """A generator of 8x8 pixels that compiles quickly."""

    latent_dim: int = LATENT
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z, condition=None, *, train):
        e = vector_of(condition)
        x = nn.Dense(64)(z if e is None else jnp.concatenate([z, e], axis=-1))
        x = nn.BatchNorm(not train, axis_name=self.axis_name, momentum=self.momentum)(x)
        return nn.tanh(x).reshape(-1, 8, 8, 1)


class PlainDiscriminator(nn.Module):
    """A discriminator that compiles quickly and judges each image by itself."""

    mixes_examples = False

    @nn.compact
    def __call__(self, x, condition=None, *, train):
        h = nn.tanh(nn.Dense(8)(x.reshape(x.shape[0], -1)))
        e = vector_of(condition)
        h = h if e is None else jnp.concatenate([h, e], axis=-1)
        return Verdict(nn.Dense(1)(h)[:, 0])


def networks(kind, *, num_classes=None):
    if kind == "plain":
        return PlainGenerator(), PlainDiscriminator()
    if kind == "dcgan":
        return (
            dcgan.Generator(8, 1, 8, LATENT, min_size=2),
            dcgan.Discriminator(8, stddev_group=2, num_classes=num_classes, min_size=2),
        )
    return (
        resnet_gan.Generator(32, 1, 4, LATENT),
        resnet_gan.Discriminator(4, num_classes=num_classes),
    )


def make(kind="dcgan", *, num_classes=None, optimizer=None, **options):
    options.setdefault("standing_batches", 2)
    optimizer = optimizer or optax.adam(1e-3)
    return gan.gan(*networks(kind, num_classes=num_classes), optimizer, optimizer, **options)


def batch(size, num=16):
    x = jax.random.uniform(jax.random.key(7), (num, size, size, 1), minval=-1.0)
    return {"image": x, "label": jnp.arange(num) % 3}


def variables_at(state):
    """The last parameters, without the average."""
    return Variables(state.params, state.state)
