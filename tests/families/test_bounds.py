"""What each family says of its `log_prob`: kind of bound, dequantization, condition."""

import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxgen.conditioning.labels import labels
from jaxgen.core import Bound
from jaxgen.distributions import likelihoods
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.diffusion import diffusion
from jaxgen.families.flow import flow
from jaxgen.families.vae import vae
from jaxgen.families.vq import vqvae
from jaxgen.families.wavenet import wavenet
from jaxgen.models.wavenet import WaveNet
from jaxgen.noise.chain import chain

SGD, SHAPE, LABELS = optax.sgd(0.1), (4, 4, 3), labels(3)
# No function is called: any network does, but where its fit is checked.
NET = nn.Dense(1)


def make_vae(**options):
    bernoulli = likelihoods.bernoulli()
    return vae(NET, NET, bernoulli, SGD, latent_dim=2, image_shape=SHAPE, **options)


def make_diffusion(**options):
    return diffusion(NET, chain(np.full(4, 0.1)), SGD, image_shape=SHAPE, **options)


def make_wavenet(**options):
    network = WaveNet(num_outputs=256)
    return wavenet(network, SGD, num_samples=9, context=4, **options)


@pytest.mark.parametrize(
    ("family", "bound"),
    [
        (make_vae(), Bound("ELBO", 48, False)),
        (make_vae(bound_samples=7, eight_bit=True), Bound("IWAE-7", 48, True)),
        (make_vae(conditioning=LABELS), Bound("ELBO", 48, False, given="label")),
        (
            vqvae(NET, NET, likelihoods.bernoulli(), SGD, num_codes=2, image_shape=SHAPE),
            Bound("ELBO", 48, False),
        ),
        (flow(NET, SGD, event_shape=SHAPE), Bound("exact", 48, True, "uniform")),
        (
            flow(NET, SGD, event_shape=SHAPE, dequantizer=NET),
            Bound("exact", 48, True, "learned"),
        ),
        (flow(NET, SGD, event_shape=(5,)), Bound("exact", 5, False)),
        (autoregressive(NET, SGD, image_shape=SHAPE), Bound("exact", 48, True)),
        (
            autoregressive(NET, SGD, image_shape=SHAPE, num_values=2, conditioning=LABELS),
            Bound("exact", 48, False, given="label"),
        ),
        (make_diffusion(), Bound("variational bound", 48, True)),
        (
            make_diffusion(conditioning=LABELS),
            Bound("variational bound", 48, True, given="label"),
        ),
        (make_wavenet(), Bound("exact", 5, True)),
    ],
)
def test_bound(family, bound):
    assert family.bound == bound
    assert family.log_prob is not None
