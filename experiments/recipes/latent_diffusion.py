"""Diffusion on the latents of a first stage: flags, and the way to an experiment.

The recipes are `latent_diffusion`, `dit_latent`, `text_to_image` and `text_to_image_digits`. Each
is `ChainConfig`, a discrete chain, or `ScoreConfig`, a continuous process, with any of the networks
of these, on the latents of a finished run of `autoencoder_kl`, `vqgan` or another recipe whose
latents are maps of real numbers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.core import Batch, Family, PyTree, Variables
from jaxgen.data.latents import LATENTS, WithLatents, cache_latents
from jaxgen.data.sources import Source, load_pair
from jaxgen.families.latent import NAME, Codec, on_latents
from jaxgen.training import pictures
from jaxgen.training.config import operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.pictures import Picture
from jaxgen.training.runs import Run, fixed_fingerprint, open_run
from jaxgen.training.strategies import make_strategy

from . import diffusion, score
from .first_stage import Config as FirstStageConfig
from .first_stage import check_finished, real_codec
from .images import image_experiment
from .text import tokenize_pair

Shape = tuple[int, int, int]
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class _OnLatents:
    first_stage: str = operational("runs/autoencoder_kl")
    """Run directory of the first stage; it may move, but not be trained on."""
    cached: bool = True
    """Encode all images once, and keep the latents in the first stage's directory; False to encode
    each batch anew, mirrored or not: for sets that do not fit into memory."""


@dataclass(frozen=True)
class ScoreConfig(_OnLatents, score.Config):
    """Flags of a continuous process on latents."""


@dataclass(frozen=True)
class ChainConfig(_OnLatents, diffusion.Config):
    """Flags of a discrete chain on latents."""


def build_score(config: ScoreConfig) -> Experiment:
    """The experiment of a continuous process on latents."""
    if config.dequantize or config.augment is not None:
        raise ValueError("--dequantize and --augment are of images: this model sees latents")
    return _experiment(config, partial(score.make_family, config))


def build_chain(config: ChainConfig) -> Experiment:
    """The experiment of a discrete chain on latents."""
    experiment = _experiment(config, partial(diffusion.make_family, config))
    return experiment._replace(preview=diffusion.make_preview(config, experiment.family))


def _experiment(
    config: ScoreConfig | ChainConfig, make: Callable[[Source, Shape], Family]
) -> Experiment:
    """The experiment of a config: first stage, data, latents, the second stage on them.

    Args:
        config: Flags.
        make: `(training examples, shape of the latents) -> second stage`.
    """
    if config.sampler.clip:
        raise ValueError("--sampler.clip must be false: latents do not lie in [-1, 1]")
    if config.cached and config.flip:
        raise ValueError("--flip needs --no-cached: latents that are kept are not mirrored")
    first = open_first_stage(config.first_stage, config.data.dir)
    codec, name = real_codec(first), f"{first.name}, {first.step} steps"
    train, held_out = _load(config, first, codec)
    second = make(train, latent_shape(codec, first))
    family = on_latents(
        second._replace(evaluate=_training_loss(second), log_prob=None, bound=None),
        _reading_known_latents(codec),
    )
    experiment = image_experiment(
        config,
        family,
        train,
        held_out,
        loss="the loss of training, of held-out latents",
        first_stage=name,
        preprocessing=first.experiment.protocol["preprocessing"],
    )
    return experiment._replace(pictures=_pictures(second, _reading_known_latents(codec)))


def open_first_stage(run_dir: str, data_dir: str | None) -> Run:
    """A finished run, as a first stage.

    Args:
        run_dir: Run directory.
        data_dir: Directory of its data, or None for where they were.

    Raises:
        FileNotFoundError: If it is no run directory, or has no checkpoint.
        ValueError: If it is of another kind of recipe, or its training is not done.
    """
    changes: dict[str, Any] = {} if data_dir is None else {"data": {"dir": data_dir}}
    first = open_run(run_dir, **changes)
    if not isinstance(first.config, FirstStageConfig):
        raise ValueError(
            "--first-stage must be a run of a recipe such as autoencoder_kl, got "
            f"{run_dir}, one of {first.name}"
        )
    check_finished(first, run_dir)
    return first


def latent_shape(codec: Codec, first: Run) -> Shape:
    """The shape of an example's latents.

    Args:
        codec: Codec of the first stage.
        first: First stage.

    Raises:
        ValueError: If the latents are no maps [height, width, channels].
    """
    raw = jax.tree.map(jnp.asarray, first.experiment.pipeline.source[np.arange(1)])
    batch = first.experiment.prepare(jax.random.key(0), raw, False)
    encode = lambda fixed, batch: codec.encode(fixed, batch, jax.random.key(0))  # noqa: E731
    shape = jax.eval_shape(encode, codec.fixed, batch)["image"].shape[1:]
    if len(shape) != 3:
        raise ValueError(
            f"--first-stage must have latents [height, width, channels], {first.name} has {shape}"
        )
    return shape


def _load(config: ScoreConfig | ChainConfig, first: Run, codec: Codec) -> tuple[Source, Source]:
    """Training and held-out examples: the first stage's, with their latents where these are kept.

    Raises:
        ValueError: If the first stage was trained on other examples.
    """
    data = config.data
    pair = load_pair(data.name, (data.split, data.held_out), data.dir, resize=data.resize)
    theirs = first.experiment.pipeline.source
    if pair[0].digest != theirs.digest:
        raise ValueError(
            f"--first-stage {config.first_stage} was trained on other data, {theirs.protocol}; "
            f"--data is {pair[0].protocol}"
        )
    if config.cached:
        train, held_out = (_with_latents(config, source, first, codec) for source in pair)
        pair = train, held_out
    return tokenize_pair(config, *pair) if config.model.condition == "text" else pair


def _with_latents(
    config: ScoreConfig | ChainConfig, source: Source, first: Run, codec: Codec
) -> WithLatents:
    """The examples and their latents, which are computed once."""
    identity = f"{first.name}, {first.step} steps, fingerprint {fixed_fingerprint(codec.fixed)}"
    latents = cache_latents(
        _make_encode(first, codec),
        source,
        Path(config.first_stage) / f"latents_{source.digest}.npz",
        batch_size=_ENCODED_AT_ONCE,
        first_stage=identity,
        replaces=tuple(source.spec),
    )
    return WithLatents(source, latents, identity)


def _make_encode(first: Run, codec: Codec) -> Callable[[Mapping[str, np.ndarray], int], Array]:
    """`(raw batch, its number) -> latents`, computed by the devices of this process alone.

    The same whatever the devices: what is drawn follows from the number.
    """
    devices = jax.local_devices()
    local = make_strategy("jit", devices[: math.gcd(_ENCODED_AT_ONCE, len(devices))])
    fixed, prepare = local.put_replicated(codec.fixed), first.experiment.prepare

    @jax.jit
    def encode(fixed: PyTree, raw: Batch, number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), number)
        return codec.encode(fixed, prepare(key, raw, False), key)["image"]

    return lambda raw, number: encode(fixed, local.put_global({"image": raw["image"]}), number)


def _reading_known_latents(codec: Codec) -> Codec:
    """The codec that encodes no batch which has its latents already."""

    def encode(fixed: Any, batch: Batch, key: Any) -> Batch:
        if LATENTS not in batch:
            return codec.encode(fixed, batch, key)
        others = {name: values for name, values in batch.items() if name != LATENTS}
        return {**others, "image": batch[LATENTS]}

    return codec._replace(encode=encode)


def _training_loss(second: Family) -> Callable[..., Any]:
    """The loss of training as what `evaluate` measures: bounds would be of 8-bit data."""
    (phase,) = second.phases

    def evaluate(variables: Variables, batch: Batch, key: Any) -> Any:
        values, aux = phase.loss(variables, batch, key, jnp.int32(0))
        return values, aux.metrics

    return evaluate


def _pictures(second: Family, codec: Codec) -> dict[str, Picture]:
    """What can be drawn of the denoiser of latents, decoded: its ways, edits and guidance."""
    others: dict[str, Any] = dict.fromkeys(("sample", "encode", "decode", "complete", "latents"))
    of_denoiser = pictures.of(second._replace(**others))
    return {name: _decoded(picture, codec) for name, picture in of_denoiser.items()}


def _decoded(picture: Picture, codec: Codec) -> Picture:
    """A picture of latents as one of images, whose examples are encoded."""

    def draw(variables: Variables, batch: Batch, key: Any, rows: int, columns: int) -> Any:
        fixed = variables.fixed[NAME]
        latents = picture(variables, codec.encode(fixed, batch, key), key, rows, columns)
        return codec.decode(fixed, latents, key)

    return draw
