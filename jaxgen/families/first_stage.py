"""First stages: the autoencoders of VQGAN and latent diffusion become a `Family`.

sizes = KL_F8
family = first_stage(
    Encoder(sizes, moments=2), Decoder(sizes), gaussian(1e-6), optax.adam(...),
    image_shape=(256, 256, 3),
    perceptual=by_lpips(...),
    game=PatchGame(PatchDiscriminator(), optax.adam(...), weight=0.5, start=50_001),
)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxgen.conditioning import base as conditions
from jaxgen.core import (
    Aux,
    Batch,
    Family,
    LatentSpace,
    Metrics,
    Optimizer,
    Phase,
    PyTree,
    Variables,
)
from jaxgen.families import gan_balance as balance
from jaxgen.families import patch_game, vq
from jaxgen.families.bottlenecks import Bottleneck
from jaxgen.families.patch_game import DISCRIMINATOR, PatchGame
from jaxgen.losses.adaptive import adaptive_weight

ENCODER, DECODER, CODEBOOK = "encoder", "decoder", "codebook"
AUTOENCODER = "autoencoder"
PERCEPTUAL = "perceptual"
"""The key of the perceptual distance's arrays in `Variables.fixed`."""
LAST = "conv_out"
"""The decoder's last layer, by whose kernel the adaptive weight is measured."""

Images = Float[Array, "batch height width channels"]
Values = Float[Array, " batch"]
Step = Int[Array, ""]


def first_stage(
    encoder: nn.Module,
    decoder: nn.Module,
    bottleneck: Bottleneck,
    optimizer: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    perceptual: Any = None,
    perceptual_weight: float = 1.0,
    game: PatchGame | None = None,
    axis_name: str | None = None,
) -> Family:
    r"""The family of Esser et al. 2021 (VQGAN) and Rombach et al. 2022 (KL and VQ autoencoders).

    Two phases: `autoencoder` (encoder, decoder, codes), and from the game's start `discriminator`.
    The autoencoder minimizes

    $$n (\overline{|x - \hat x|} + w d(x, \hat x)) + \text{penalty}
      + w_g \lambda A(D(\hat x)), \quad \lambda = |\nabla R| / (|\nabla A| + 10^{-4})$$

    where the bar is the mean over pixels and channels, d the perceptual distance, n the number of
    pixels and channels where the bottleneck's penalty is of whole examples (Gaussians), else 1,
    and \(\lambda\), at most 1e4, the ratio of the gradients of the first term R and of A by the
    kernel of the decoder's last layer (`jaxgen.losses.adaptive`). The authors' code divides R by
    the exponential of a log-variance that no optimizer trains: it stays 0, and is left out here.
    The discriminator minimizes half the game's loss on images and their reconstructions.

    There is no prior and no likelihood: `sample` and `log_prob` are None; a second stage is one,
    see `jaxgen.families.latent`. `encode` gives the mean of a Gaussian, or codes [B, h, w] where
    the bottleneck has some; with `continuous=True` what diffusion is trained on, a draw of the
    Gaussian, or the vectors *before* they are quantized. `decode` takes either, quantizes the
    latter, and cuts images off at [-1, 1].

    Metrics: "l1" and "mse" (means over pixels and channels), "psnr" (`10 log10(4 / mse)` of each
    image, dB), "perceptual", the bottleneck's own; of the game "adversarial" and "weight", its
    lambda, 0 before its start, and the discriminator's logits and accuracies on patches.

    Args:
        encoder: Module `encoder(x) -> [B, h, w, moments D]`, the bottleneck's moments.
        decoder: Module `decoder(z) -> images`, in two parts `features(z)` and `pixels(features)`,
            of which the second is the layer `conv_out`.
        bottleneck: What lies between, from `jaxgen.families.bottlenecks`.
        optimizer: Transformation of the gradients of both networks and the codes.
        image_shape: (H, W, C) of the data.
        perceptual: A distance between images, with `distance(fixed, x, y) -> f32[B]` and the arrays
            `fixed` that it reads (`jaxgen.losses.perceptual`), or None for none.
        perceptual_weight: Weight w of the perceptual distance.
        game: The adversary, or None for none.
        axis_name: Name of the mapped axis over which the batch is spread (pmap), or None.

    Raises:
        ValueError: If an argument is out of its range; `init`, if networks and data do not fit.
    """
    _check(image_shape, perceptual_weight, game)
    num_dims = math.prod(image_shape) if bottleneck.summed else 1
    networks = _Networks(encoder, decoder, bottleneck)
    distance = _Distance(perceptual, perceptual_weight, num_dims)

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        if perceptual is not None and PERCEPTUAL not in fixed:
            raise ValueError(f"fixed must hold {PERCEPTUAL!r}, as the family's own does")
        key_networks, key_game = jax.random.split(key)
        params = networks.init(key_networks, batch["image"], image_shape)
        if game is None:
            return Variables(params, {}, fixed)
        params[DISCRIMINATOR], state = patch_game.init(game, key_game, batch["image"])
        return Variables(params, {DISCRIMINATOR: state}, fixed)

    def loss(variables: Variables, batch: Batch, key: Array, step: Step) -> tuple[Values, Aux]:
        x, weight = batch["image"], batch.get("weight")
        features, passed = networks.squeeze(variables, x, key, weight)
        rebuilt = networks.pixels(variables, features)
        value, metrics = distance(variables.fixed, x, rebuilt)
        value = value + passed.penalty
        metrics |= passed.metrics
        if game is not None:

            def adversarial(features: Array, rebuilt: Array) -> tuple[Values, Metrics]:
                ratio = balanced(variables, x, lax.stop_gradient(features), weight)
                term = patch_game.deceive(game, variables, rebuilt)
                metrics = {"adversarial": term, "weight": jnp.broadcast_to(ratio, term.shape)}
                return game.weight * ratio * term, metrics

            term, of_game = patch_game.from_step(game.start, step, adversarial, features, rebuilt)
            value, metrics = value + term, metrics | of_game
        return value, Aux(metrics)

    def balanced(variables: Variables, x: Images, features: Array, weight) -> Float[Array, ""]:
        """The adaptive weight: the trunk is not gone through again, for it has no part in it."""
        assert game is not None

        def rebuilt(kernel: Array) -> Images:
            return networks.pixels(variables, features, kernel)

        return adaptive_weight(
            lambda kernel: distance(variables.fixed, x, rebuilt(kernel))[0],
            lambda kernel: patch_game.deceive(game, variables, rebuilt(kernel)),
            variables.params[DECODER][LAST]["kernel"],
            weight,
            axis_name=axis_name,
        )

    def play(variables: Variables, batch: Batch, key: Array, step: Step) -> tuple[Values, Aux]:
        assert game is not None
        x = batch["image"]
        features, _ = networks.squeeze(variables, x, key, batch.get("weight"))
        return patch_game.discriminate(game, variables, x, networks.pixels(variables, features))

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Values, Metrics]:
        x = batch["image"]
        features, passed = networks.squeeze(variables, x, key, batch.get("weight"))
        value, metrics = distance(variables.fixed, x, networks.pixels(variables, features))
        return value + passed.penalty, metrics | passed.metrics

    def encode(variables: Variables, batch: Batch, key: Array, *, continuous: bool = False):
        codes, encoded = variables.params.get(CODEBOOK), networks.encoded(variables, batch["image"])
        if continuous:
            return bottleneck.continuous(codes, encoded, key)
        return bottleneck.encode(codes, encoded)

    def decode(variables: Variables, latents: Array, key: Array, *, condition=None) -> Images:
        conditions.encode(None, variables, condition)
        z = bottleneck.decode(variables.params.get(CODEBOOK), latents)
        return jnp.clip(networks.pixels(variables, networks.features(variables, z)), -1, 1)

    has_codes = jax.eval_shape(bottleneck.init, jax.random.key(0)) is not None
    trained = (ENCODER, DECODER, *((CODEBOOK,) if has_codes else ()))
    optimizers = {AUTOENCODER: Optimizer(trained, optimizer)}
    phases = [Phase(AUTOENCODER, AUTOENCODER, loss)]
    if game is not None:
        optimizers[DISCRIMINATOR] = Optimizer((DISCRIMINATOR,), game.optimizer)
        phases.append(Phase(DISCRIMINATOR, DISCRIMINATOR, play, start=game.start))
    walk = bottleneck.interpolate
    return Family(
        init,
        optimizers=optimizers,
        phases=tuple(phases),
        evaluate=evaluate,
        encode=encode,
        decode=decode,
        latents=None if walk is None else LatentSpace(walk),
        fixed={} if perceptual is None else {PERCEPTUAL: perceptual.fixed},
        watch=_watch,
        name="First stage",
        num_codes=bottleneck.num_codes,
    )


class _Networks(NamedTuple):
    """Encoder, bottleneck and decoder as functions of the family's variables."""

    encoder: nn.Module
    decoder: nn.Module
    bottleneck: Bottleneck

    def init(self, key: Key[Array, ""], x: Images, image_shape: Sequence[int]) -> dict[str, Any]:
        """The parameters by network.

        Raises:
            ValueError: If the data has another shape, or the decoder makes one.
        """
        if x.shape[1:] != tuple(image_shape):
            raise ValueError(f"image_shape is {tuple(image_shape)}, but the data has {x.shape[1:]}")
        key_encoder, key_codes, key_decoder, key_z = jax.random.split(key, 4)
        codes = self.bottleneck.init(key_codes)

        encoded, of_encoder = self.encoder.init_with_output(key_encoder, x)
        z = self.bottleneck.squeeze(codes, encoded, key_z, None).latents
        rebuilt, of_decoder = self.decoder.init_with_output(key_decoder, z)
        if rebuilt.shape != x.shape:
            raise ValueError(
                f"the decoder makes {rebuilt.shape[1:]} images, the data has {x.shape[1:]}"
            )
        params = {ENCODER: of_encoder["params"], DECODER: of_decoder["params"]}
        return params if codes is None else {**params, CODEBOOK: codes}

    def encoded(self, variables: Variables, x: Images) -> Array:
        return self.encoder.apply({"params": variables.params[ENCODER]}, x)  # type: ignore[return-value]

    def features(self, variables: Variables, z: Array) -> Array:
        """What the decoder's last layer is given."""
        return self.decoder.apply(  # type: ignore[return-value]
            {"params": variables.params[DECODER]}, z, method="features"
        )

    def pixels(self, variables: Variables, features: Array, kernel: Array | None = None) -> Images:
        """What the last layer makes of features, by a kernel of its own or by another one."""
        params = variables.params[DECODER]
        if kernel is not None:
            params = {**params, LAST: {**params[LAST], "kernel": kernel}}
        return self.decoder.apply({"params": params}, features, method="pixels")  # type: ignore[return-value]

    def squeeze(self, variables: Variables, x: Images, key: Key[Array, ""], weight):
        """(the decoder's features, what went through the bottleneck) of images."""
        codes, encoded = variables.params.get(CODEBOOK), self.encoded(variables, x)
        passed = self.bottleneck.squeeze(codes, encoded, key, weight)
        return self.features(variables, passed.latents), passed


class _Distance(NamedTuple):
    """How far reconstructions are from images: `(fixed, x, rebuilt) -> (f32[B], metrics)`."""

    perceptual: Any
    weight: float
    num_dims: int

    def __call__(self, fixed: Mapping[str, PyTree], x: Images, rebuilt: Images):
        l1 = jnp.abs(x - rebuilt).mean(axis=(1, 2, 3))
        mse = jnp.square(x - rebuilt).mean(axis=(1, 2, 3))
        # Of images in [-1, 1], whose peak is 2; a perfect one has no more than 100 dB.
        psnr = 10 * jnp.log10(4 / jnp.maximum(mse, 4e-10))
        metrics = lax.stop_gradient({"l1": l1, "mse": mse, "psnr": psnr})
        value = l1
        if self.perceptual is not None:
            metrics["perceptual"] = self.perceptual.distance(fixed[PERCEPTUAL], x, rebuilt)
            value = value + self.weight * metrics["perceptual"]
        return self.num_dims * value, metrics


def _watch(metrics: Mapping[str, float]) -> Sequence[str]:
    """Warns of a collapsed codebook and of a game that is over, from a row of averaged metrics."""
    usage = {"usage": metrics.get(f"{AUTOENCODER}/usage", metrics.get("usage", 1.0))}
    return [*vq.watch(usage), *balance.warnings("hinge", DISCRIMINATOR, metrics)]


def _check(
    image_shape: tuple[int, int, int], perceptual_weight: float, game: PatchGame | None
) -> None:
    """Raise ValueError for an argument out of its range."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape}")
    if not 0 <= perceptual_weight < math.inf:
        raise ValueError(f"perceptual_weight must be 0 or more, got {perceptual_weight}")
    if game is not None:
        patch_game.check(game)
