"""bfloat16 stays inside the networks: what goes in and what comes out is float32.

One rule for all of them (docs/architecture.md), checked on each by its own numbers: the output
holds values that bfloat16 cannot hold, and tells inputs apart that bfloat16 cannot.
"""

import importlib
import inspect
import pkgutil
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen.models
from jaxgen.conditioning.base import Condition
from jaxgen.models import (
    autoencoder,
    dcgan,
    dit,
    hierarchical_vae,
    image_encoder,
    masked_transformer,
    noisy_classifier,
    patch_gan,
    pixelcnn,
    pixelcnnpp,
    resnet_gan,
    score_unet,
    srresnet_gan,
    stackgan,
    stylegan2,
    stylegan2_discriminator,
    text_encoder,
    transformer,
    unet,
    vae,
    vdm,
    vgg,
    vq,
    wavenet,
)
from jaxgen.models.bijectors import conditioners, made, residual, skip_resnet
from jaxgen.models.blocks.resample import BINOMIAL
from jaxgen.models.blocks.unet_layers import ADM

IMAGE, VECTOR, CODES = (8, 8, 3), (16,), (2, 2, 8)
TRAIN = {"train": True}
TOLD = {**TRAIN, "condition": Condition(jnp.linspace(-1, 1, 20).reshape(4, 5))}
SIZES = autoencoder.Sizes((1, 2), 8, channels=8, num_res_blocks=1)
STAGE = stackgan.Generator(8, 3, 8, 8, 8)

# By name: a maker of the network, the shape of an example, and options of the call. Every network
# has a hidden layer, wide or not, between its first and its last.
NETWORKS = {
    "unet": (partial(unet.UNet, 8, (1, 2), 1, (4,)), IMAGE, {"train": False}),
    "reading_unet": (
        partial(unet.UNet, 8, (1, 2), 1, (4,), transformer_depth=1, token_width=4),
        IMAGE,
        {"train": False, "condition": Condition(None, jnp.linspace(-1, 1, 40).reshape(4, 2, 5))},
    ),
    "ncsnpp": (
        partial(score_unet.ScoreUNet, 8, (1, 1, 2), 1, (4,), taps=BINOMIAL, input_pyramid=True),
        IMAGE,
        {"train": False},
    ),
    "ncsnpp_256": (
        partial(score_unet.ScoreUNet, 8, (1, 2), 1, (), taps=BINOMIAL, skip_pyramids=True),
        IMAGE,
        {"train": False},
    ),
    "adm": (
        partial(score_unet.ScoreUNet, 8, (1, 2), 1, (4,), head_width=4, style=ADM),
        IMAGE,
        {"train": False},
    ),
    "noisy_classifier": (
        partial(noisy_classifier.NoisyClassifier, 3, 8),
        IMAGE,
        {"train": False},
    ),
    "dit": (partial(dit.DiT, 16, 2, 2), IMAGE, TRAIN),
    "vdm": (partial(vdm.VDMNetwork, 8, 2), IMAGE, {"train": False}),
    "dense_encoder": (partial(vae.DenseEncoder, 4, (16, 16)), IMAGE, {}),
    "dense_decoder": (partial(vae.DenseDecoder, (8, 8), 3, (16, 16)), VECTOR, {}),
    "conv_encoder": (partial(vae.ConvEncoder, 4, 8, 16), IMAGE, {}),
    "conv_decoder": (partial(vae.ConvDecoder, 8, 3, 8, 16), VECTOR, {}),
    "vdvae": (
        partial(hierarchical_vae.VDVAE, "8x1,8d2,4x1", "4x1,8m4", 8, 2, latent_dim=2),
        IMAGE,
        {},
    ),
    "vgg": (partial(vgg.VGG16, ("relu1_2", "relu2_2")), IMAGE, {}),
    "vq_encoder": (partial(vq.Encoder, 8, 8), IMAGE, {}),
    "vq_decoder": (partial(vq.Decoder, 3, 8), CODES, {}),
    "autoencoder_encoder": (partial(autoencoder.Encoder, SIZES), IMAGE, {}),
    "autoencoder_decoder": (partial(autoencoder.Decoder, SIZES), CODES, {}),
    "dcgan_generator": (partial(dcgan.Generator, 16, 3, 8, latent_dim=16), VECTOR, TRAIN),
    "dcgan_discriminator": (partial(dcgan.Discriminator, 8, num_classes=3), (16, 16, 3), TRAIN),
    "patch_discriminator": (partial(patch_gan.PatchDiscriminator, 8, 1), (16, 16, 3), TRAIN),
    "resnet_generator": (partial(resnet_gan.Generator, channels=8, latent_dim=16), VECTOR, TRAIN),
    "resnet_discriminator": (partial(resnet_gan.Discriminator, 8), (32, 32, 3), TRAIN),
    "stackgan_generator": (partial(stackgan.Generator, 8, 3, 8, 8, 8), VECTOR, TOLD),
    "stackgan_refiner": (partial(stackgan.Refiner, STAGE, 16, 8, 8, 1), (24,), TOLD),
    "stackgan_discriminator": (partial(stackgan.Discriminator, 8, 8), (16, 16, 3), TOLD),
    "srresnet_generator": (
        partial(srresnet_gan.Generator, 32, 3, 4, 16, blocks=1, kernel_size=3),
        VECTOR,
        TRAIN,
    ),
    "srresnet_discriminator": (partial(srresnet_gan.Discriminator, 4, 1), (32, 32, 3), TRAIN),
    "stylegan2_generator": (
        partial(stylegan2.Generator, 16, 3, 128, 16, 16, 16, mapping_layers=1),
        VECTOR,
        TRAIN,
    ),
    "stylegan2_discriminator": (
        partial(stylegan2_discriminator.Discriminator, 128, 16),
        (16, 16, 3),
        TRAIN,
    ),
    "pixelcnn": (partial(pixelcnn.PixelCNN, 3, 8, 12, 1, 12), IMAGE, {}),
    "gated_pixelcnn": (partial(pixelcnn.GatedPixelCNN, 3, 8, 12, 2, 3, 12), IMAGE, {}),
    "pixelcnnpp": (partial(pixelcnnpp.PixelCNNPP, 3, 8, 1, 2, 2), IMAGE, {}),
    "wavenet": (partial(wavenet.WaveNet, 6, None, 1, 3, 8, 8), (24,), {}),
    "mlp": (partial(conditioners.MLP, 8, (16, 16)), VECTOR, {}),
    "convnet": (partial(conditioners.ConvNet, 6, 8), IMAGE, {}),
    "resnet": (partial(conditioners.ResNet, 6, 8, 1), IMAGE, {}),
    "convnet of glow": (partial(conditioners.ConvNet, 6, 8, True, 3.0), IMAGE, {}),
    "skip_resnet": (partial(skip_resnet.SkipResNet, 6, 8, 1), IMAGE, {}),
    "residual": (partial(residual.ResidualMLP, 8, 16, 1), VECTOR, {}),
    "image_encoder": (partial(image_encoder.ImageEncoder, 8, 8), IMAGE, {}),
    "text_encoder": (partial(text_encoder.TextEncoder, 50, 16, 1, 2), (6,), {}),
    "transformer": (partial(transformer.Transformer, 50, 6, 16, 1, 2), (6,), {}),
    "masked_transformer": (
        partial(masked_transformer.MaskedTransformer, 50, 6, 16, 1, 2),
        (6,),
        {},
    ),
    "made": (partial(made.MADE, 2, (64, 64)), VECTOR, {}),
}
# Those that are given a time too.
TIMED = {"dit", "unet", "reading_unet", "ncsnpp", "ncsnpp_256", "adm", "noisy_classifier", "vdm"}
# Those that are given tokens; the first, where there are some.
READERS = {"text_encoder", "transformer", "masked_transformer"}
# Parts of the networks above, in whatever precision these are.
PARTS = {
    "DiTBlock",
    "SmoothDownsample",
    "NormedConv",
    "GatedLayer",
    "MaskedDense",
    "MaskedAutoregressive",
}


def randomized(module, *args, **options):
    """Random variables: at initialization many a last layer is zero."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **options))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        is_kernel = "kernel" in jax.tree_util.keystr(path) and leaf.ndim > 1
        return values / np.sqrt(np.prod(leaf.shape[:-1])) if is_kernel else 1 + 0.1 * values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def rounded(x):
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_stays_inside(name):
    make, shape, options = NETWORKS[name]
    network = make(dtype=jnp.bfloat16)
    x = np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)
    x = jnp.asarray(np.concatenate([x, rounded(x)]))
    others = [jnp.array([3, 700, 3, 700])] if name in TIMED else []
    if name in READERS:
        x = jnp.asarray(np.random.default_rng(1).integers(1, 50, (4, *shape)))
        others = [] if name == "transformer" else [jnp.ones(x.shape, bool)]
    variables = randomized(network, x, *others, **options)

    def call(variables, x):
        y = network.apply(variables, x, *others, **options, mutable=["batch_stats", "spectral"])[0]
        return [leaf.reshape(2, -1) for leaf in jax.tree.leaves(y)]

    program = jax.jit(call).trace(variables, x)
    products = [line for line in str(program.jaxpr).splitlines() if "bf16" in line]
    assert any("dot_general" in p or "convolve" in p for p in products)
    for y in program.lower().compile()(variables, x):
        assert y.dtype == jnp.float32
        unlike = np.asarray(y) != rounded(y)
        np.testing.assert_array_less(0.9, np.mean(unlike[np.asarray(y) != 0]))  # ReLUs make zeros
        given, of_rounded = np.asarray(y)
        assert name in READERS or np.any(given != of_rounded)


def test_no_network_is_left_out():
    """Every network with a `dtype` is in the table."""
    found = set()
    for info in pkgutil.walk_packages(jaxgen.models.__path__, "jaxgen.models."):
        if info.name.startswith(("jaxgen.models.blocks", "jaxgen.models.conv")):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            own = inspect.isclass(value) and value.__module__ == info.name
            if own and issubclass(value, nn.Module) and "dtype" in value.__dataclass_fields__:
                found |= {value} if not name.startswith("_") else set()
    listed = {make.func for make, _, _ in NETWORKS.values()}
    assert listed == {network for network in found if network.__name__ not in PARTS}
