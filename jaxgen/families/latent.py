"""Two stages: any family on the latents of a first stage that is trained already and stays so.

    first = open_run("runs/vqvae_cifar")
    codec = codes(first.family, first.variables, num_codes=512)
    prior = autoregressive(PixelCNN(...), adam(3e-4), image_shape=(8, 8, 1), num_values=512)
    family = on_latents(prior, codec)

or, of latents that are real numbers,

    scale = latent_scale(first.family, first.variables, batches, continuous=True)
    codec = continuous(first.family, first.variables, scale=scale, continuous=True)

`family` is trained on images, or on latents computed once (`jaxgen.data.latents`), and samples
images. The first stage's variables travel in `Variables.fixed`: they are not trained, averaged or
checkpointed, and no constants of a compiled function.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from jaxgen.core import Aux, Batch, Bound, Family, LossFn, Metrics, PyTree, Sampling, Variables
from jaxgen.losses.reduce import bits_per_dim

NAME = "codec"
"""The key of the first stage's arrays in `Variables.fixed`."""
_CODEC_KEY = 0x0C0DEC  # folded into a key, for what the first stage draws


class Codec(NamedTuple):
    """What a frozen first stage gives a second one: pure functions, and the arrays they read.

    Attributes:
        encode: `(fixed, batch, key) -> batch`: the second stage's batch, its latents by the name
            that the second stage reads. Conditions and `weight` are passed on.
        decode: `(fixed, latents, key) -> x`: examples of latents as the second stage samples them.
        fixed: The first stage's variables.
        log_ratio: `(fixed, batch, key) -> f32[B]`: `log p(x | z) - log q(z | x)` in nats at the
            latents z that `encode` gives by the same key. With `log p(z)` it is a lower bound of
            log p(x) in expectation (exactly so where q has one value). None if it is not known.
        bound: The first stage's own `bound`, for the size and the kind of its data; None without
            `log_ratio`.
        per_pixel: Whether latents are images of codes, one a pixel, as a palette's are: then the
            likelihood is that of the codes.
    """

    encode: Callable[[PyTree, Batch, Key[Array, ""]], Batch]
    decode: Callable[[PyTree, Array, Key[Array, ""]], Array]
    fixed: PyTree
    log_ratio: Callable[[PyTree, Batch, Key[Array, ""]], Float[Array, " batch"]] | None = None
    bound: Bound | None = None
    per_pixel: bool = False


def codes(family: Family, variables: Variables, *, num_codes: int) -> Codec:
    """The codec of a first stage with discrete latents, such as a VQ-VAE.

    Indices k[B, h, w] become images [B, h, w, 1] of `num_codes` evenly spaced values, the entry
    `image` of the second stage's batch, as `jaxgen.families.autoregressive` takes them:

        v = 2 k / (num_codes - 1) - 1

    and back to the nearest index, exactly. An index beyond `num_codes` gives NaN, so that the
    step's guard finds it.

    The first stage's `log_prob`, where it has one, must be the bound under a uniform prior over the
    codes, `log p(x | k) - h w log(num_codes)`; what is left without the prior's part is
    `log_ratio`, since q(k | x) is 1.

    Args:
        family: The first stage: `encode` gives integers [B, h, w], `decode` takes them.
        variables: What to call its functions with.
        num_codes: The number of codes, at least 2.

    Raises:
        ValueError: If `num_codes` is below 2, or the family has no `encode` and `decode` or takes
            conditions (of samples there would be none for it).
    """
    if num_codes < 2:
        raise ValueError(f"num_codes must be at least 2, got {num_codes}")
    encoder, decoder = _of_first_stage(family)
    log_prob = family.log_prob

    def encode(fixed: PyTree, batch: Batch, key: Key[Array, ""]) -> Batch:
        indices = encoder(fixed, batch, key)[..., None].astype(jnp.int32)
        values = 2 * indices.astype(jnp.float32) / (num_codes - 1) - 1
        return {**batch, "image": jnp.where(indices < num_codes, values, jnp.nan)}

    def decode(fixed: PyTree, latents: Array, key: Key[Array, ""]) -> Array:
        indices = jnp.round((latents[..., 0] + 1) / 2 * (num_codes - 1))
        indices = jnp.clip(indices, 0, num_codes - 1)
        # What is not finite stays so: the index of no code, of which decoders make NaN.
        indices = jnp.where(jnp.isfinite(latents[..., 0]), indices, num_codes)
        return decoder(fixed, indices.astype(jnp.int32), key)

    def log_ratio(fixed: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, " batch"]:
        assert log_prob is not None
        positions = math.prod(jax.eval_shape(encoder, fixed, batch, key).shape[1:])
        return log_prob(fixed, batch, key) + positions * math.log(num_codes)

    if log_prob is None:
        return Codec(encode, decode, variables)
    return Codec(encode, decode, variables, log_ratio, family.bound)


def continuous(
    family: Family, variables: Variables, *, scale: float = 1.0, **options: Any
) -> Codec:
    """The codec of a first stage whose latents are real numbers, such as a KL autoencoder.

    `scale z` is the entry `image` of the second stage's batch, and back. There is no `log_ratio`.
    The scale is kept beside the first stage's variables, among the codec's arrays.

    Args:
        family: The first stage: `encode` gives f32[B, ...], `decode` takes them.
        variables: What to call its functions with.
        scale: Factor that gives the latents about unit variance, see `latent_scale`.
        options: What else `encode` is told: `continuous=True` of a family of
            `jaxgen.families.first_stage`, for draws of its Gaussian, or for vectors before they are
            quantized, which its `decode` does.

    Raises:
        ValueError: If the scale is not positive, or the family has no `encode` and `decode` or
            takes conditions; when it is called, if `encode` gives integers.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive, got {scale}")
    encoder, decoder = _of_first_stage(family)

    def encode(fixed: PyTree, batch: Batch, key: Key[Array, ""]) -> Batch:
        latents = encoder(fixed["first_stage"], batch, key, **options)
        if not jnp.issubdtype(latents.dtype, jnp.floating):
            raise ValueError(f"the first stage's latents must be real, got {latents.dtype}: codes?")
        return {**batch, "image": fixed["scale"] * latents}

    def decode(fixed: PyTree, latents: Array, key: Key[Array, ""]) -> Array:
        return decoder(fixed["first_stage"], latents / fixed["scale"], key)

    arrays = {"first_stage": variables, "scale": np.float32(scale)}
    return Codec(encode, decode, arrays)


def latent_scale(
    family: Family, variables: Variables, batches: Iterable[Batch], **options: Any
) -> float:
    """`1 / std` of the latents of some batches, over all of their numbers.

    As in latent diffusion's `scale_by_std`, which takes the first batch of training. Rounded to
    four digits, so that another machine's arithmetic gives the same number.

    Args:
        family: The first stage.
        variables: What to call its `encode` with.
        batches: Batches of the first stage's data, as its loss sees them; at least one.
        options: What else `encode` is told, as of `continuous`.

    Raises:
        ValueError: If there are no batches, or the latents are all alike or not finite.
    """
    encoder, _ = _of_first_stage(family)
    encode = jax.jit(partial(encoder, **options))
    key, parts = jax.random.key(0), []
    for i, batch in enumerate(batches):
        latents = encode(variables, batch, jax.random.fold_in(key, i))
        parts.append(np.asarray(latents, np.float64).ravel())
    deviation = np.std(np.concatenate(parts)) if parts else 0.0
    if not 0 < deviation < math.inf:
        raise ValueError(f"batches must have latents that differ, theirs deviate by {deviation}")
    return float(f"{1 / deviation:.4g}")


def _of_first_stage(family: Family) -> tuple[Callable[..., Any], Callable[..., Array]]:
    """Its `encode` and `decode`.

    Raises:
        ValueError: If it lacks one, or takes conditions: of samples there would be none for it.
    """
    if family.encode is None or family.decode is None:
        raise ValueError("a first stage must have encode and decode, this family has not")
    if family.conditioning is not None:
        raise ValueError(f"a first stage must be unconditional, got {family.conditioning.key!r}")
    return family.encode, family.decode


def on_latents(family: Family, codec: Codec, *, cached: bool = False) -> Family:
    """A family on the latents of a frozen first stage: trained on its latents, sampling its data.

    Losses, `evaluate` and `encode` see the batch that the codec makes, without a gradient; `sample`
    and `decode` give what the codec makes of latents. Everything else is the second stage's: its
    optimizers, phases, conditions and warnings. Its metric "bits_per_dim", being of the latents, is
    called "bits_per_latent_dim".

    Where the codec has a `log_ratio` and the second stage a `log_prob` (a mass of discrete latents,
    a density of others), their sum is the new `log_prob`: a lower bound of log p(x) of the *data*.
    `evaluate` gives its negative, with its two parts as metrics in nats, "first_stage" and
    "second_stage", and of 8-bit data "bits_per_dim". Otherwise there is no likelihood of the data:
    `log_prob` is None, and `evaluate` gives what the second stage measures of the latents.

    `complete` draws the latents anew whose pixels are not all known, and puts the known pixels into
    what is decoded; what is encoded for it is gray where nothing is known. There is no `denoising`:
    its parts would make latents. A codec that is `per_pixel` keeps the second stage's `log_prob`
    and `bound`, which are of the codes and not of the data.

    Args:
        family: The second stage.
        codec: The first stage.
        cached: Whether batches hold latents already, as `codec.encode` would give them (see
            `jaxgen.data.latents`): nothing is encoded then, and as batches have no data there is
            neither a likelihood of it nor `encode`.

    Returns:
        A family whose `fixed` holds the codec's arrays beside the second stage's.

    Raises:
        ValueError: If the second stage has arrays of its own by the name "codec" (it is itself on
            latents); `init`, if it is not given the codec's arrays.
    """
    if NAME in family.fixed:
        raise ValueError(f"the second stage has {NAME!r} in its own fixed arrays: it is on latents")

    def encoded(fixed: Mapping[str, PyTree], batch: Batch, key: Array) -> Batch:
        if cached:
            return batch
        return lax.stop_gradient(codec.encode(fixed[NAME], batch, _codec_key(key)))

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        if NAME not in fixed:
            raise ValueError(f"fixed must hold {NAME!r}, as the family's own does; got {[*fixed]}")
        return family.init(key, encoded(fixed, batch, key), fixed)

    def trained(loss: LossFn) -> LossFn:
        def on_encoded(variables: Variables, batch: Batch, key: Array, step: Array):
            values, aux = loss(variables, encoded(variables.fixed, batch, key), key, step)
            return values, Aux(_of_latents(aux.metrics), aux.state)

        return on_encoded

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        values, metrics = family.evaluate(variables, encoded(variables.fixed, batch, key), key)
        return values, _of_latents(metrics)

    def sample(variables: Variables, key: Array, num: int, *, condition=None, **options) -> Array:
        assert family.sample is not None
        key_latents, key_x = jax.random.split(key)
        latents = family.sample(variables, key_latents, num, condition=condition, **options)
        return codec.decode(variables.fixed[NAME], latents, key_x)

    def encode(variables: Variables, batch: Batch, key: Array) -> PyTree:
        assert family.encode is not None
        return family.encode(variables, encoded(variables.fixed, batch, key), key)

    def decode(variables: Variables, latents: PyTree, key: Array, *, condition=None) -> Array:
        assert family.decode is not None
        key_latents, key_x = jax.random.split(key)
        of_codec = family.decode(variables, latents, key_latents, condition=condition)
        return codec.decode(variables.fixed[NAME], of_codec, key_x)

    two_stages = family._replace(
        init=init,
        phases=tuple(p._replace(loss=trained(p.loss)) for p in family.phases),
        evaluate=evaluate,
        sample=None if family.sample is None else sample,
        log_prob=None,
        bound=None,
        encode=None if cached or family.encode is None else encode,
        decode=None if family.decode is None else decode,
        complete=None if cached or family.complete is None else _completion(family, codec),
        denoising=None,
        num_codes=None,
        fixed={**family.fixed, NAME: codec.fixed},
        sampling=_sampling(family.sampling),
    )
    if codec.per_pixel:
        return _per_pixel(two_stages, family, codec)
    return two_stages if cached else _with_likelihood(two_stages, family, codec)


def _completion(second: Family, codec: Codec) -> Callable[..., Array]:
    """`complete` of images, by the second stage's of latents."""

    def complete(variables: Variables, key: Array, given: Array, known: Array, *, condition=None):
        assert second.complete is not None
        fixed, is_known = variables.fixed[NAME], known[..., None]
        # Else an encoder, which sees around each latent, would tell what is not to be known.
        batch = {"image": jnp.where(is_known, given, 0)}
        latents = codec.encode(fixed, batch, _codec_key(key))["image"]
        of_latents = _known_latents(known, latents.shape)
        latents = second.complete(variables, key, latents, of_latents, condition=condition)
        x = codec.decode(fixed, latents, _codec_key(key))
        return jnp.where(is_known, given, x)

    return complete


def _known_latents(known: Array, shape: tuple[int, ...]) -> Array:
    """bool[B, h, w]: the latents whose pixels are all known.

    Raises:
        ValueError: If the latents are no maps that pixels can be divided among.
    """
    batch, height, width = known.shape
    if len(shape) != 4 or height % shape[1] or width % shape[2]:
        raise ValueError(
            f"latents must be maps [B, h, w, D] of parts of {height}x{width} pixels, got "
            f"{list(shape)}"
        )
    rows, columns = shape[1:3]
    blocks = known.reshape(batch, rows, height // rows, columns, width // columns)
    return blocks.all(axis=(2, 4))


def _per_pixel(two_stages: Family, second: Family, codec: Codec) -> Family:
    """The family with what codes of single pixels leave of the second stage."""

    def log_prob(variables: Variables, batch: Batch, key: Array) -> Array:
        return -two_stages.evaluate(variables, batch, key)[0]

    return two_stages._replace(
        log_prob=None if second.log_prob is None else log_prob,
        bound=None if second.bound is None else second.bound._replace(eight_bit=False),
        sampling=second.sampling,
    )


def _with_likelihood(two_stages: Family, second: Family, codec: Codec) -> Family:
    """The family with the bound of its data's log-likelihood, where both stages have their part."""
    log_ratio, first_bound, second_bound = codec.log_ratio, codec.bound, second.bound
    if log_ratio is None or first_bound is None or second_bound is None or not second.log_prob:
        return two_stages

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        second_stage, metrics = two_stages.evaluate(variables, batch, key)
        first_stage = -log_ratio(variables.fixed[NAME], batch, _codec_key(key))
        values = first_stage + second_stage
        metrics = {**metrics, "first_stage": first_stage, "second_stage": second_stage}
        if first_bound.eight_bit:
            metrics["bits_per_dim"] = bits_per_dim(values, first_bound.num_dims)
        return values, metrics

    def log_prob(variables: Variables, batch: Batch, key: Array) -> Array:
        return -evaluate(variables, batch, key)[0]

    bound = first_bound._replace(kind="ELBO", given=second_bound.given)
    return two_stages._replace(evaluate=evaluate, log_prob=log_prob, bound=bound)


def _sampling(second: Sampling | None) -> Sampling | None:
    note = "then one pass of the first stage's decoder"
    return None if second is None else Sampling(second.passes + 1, f"{second.note}, {note}")


def _codec_key(key: Array) -> Array:
    return jax.random.fold_in(key, _CODEC_KEY)


def _of_latents(metrics: Metrics) -> dict[str, Array]:
    """The second stage's metrics, whose bits are of the latents and not of the data."""
    names = {"bits_per_dim": "bits_per_latent_dim"}
    return {names.get(name, name): values for name, values in metrics.items()}
