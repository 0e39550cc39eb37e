"""A folder that diffusers wrote, as a `Run`: a network, an autoencoder, or a whole pipeline.

    run = from_pretrained("ddpm-cifar10-32")    # of jaxgen.convert.pretrained
    images = run.sample(16)

Of diffusers nothing is run or imported: a folder is JSON and safetensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from flax import linen as nn

from jaxgen.conditioning.labels import labels
from jaxgen.convert import diffusers_autoencoder, diffusers_dit, diffusers_scheduler, diffusers_unet
from jaxgen.convert.diffusers_config import check_options, read
from jaxgen.convert.diffusers_scheduler import Scheduler
from jaxgen.convert.weights import read_safetensors
from jaxgen.core import Family, Params, Variables
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource
from jaxgen.data.transforms import prepare_images
from jaxgen.families import denoising
from jaxgen.families.bottlenecks import gaussian
from jaxgen.families.diffusion import diffusion
from jaxgen.families.first_stage import first_stage
from jaxgen.families.latent import continuous, on_latents
from jaxgen.models.autoencoder import Decoder, Encoder
from jaxgen.training import config as configs
from jaxgen.training.experiment import IMAGES, Experiment, Medium
from jaxgen.training.strategies import JitStrategy
from jaxgen.training.trained_run import Run

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
LATENTS = Medium("latents", lambda x: x, (1, 3))
"""Latents as they are, without a picture."""
_RATE = 1e-4  # of the optimizer, should training go on
_CLASS = "_class_name"
_DIT = ("DiTTransformer2DModel", "Transformer2DModel")


@dataclass(frozen=True)
class DenoiserConfig:
    """What may be changed of a network or a pipeline: nothing that was trained."""

    run_dir: str
    """Path of the folder."""
    steps: int = 0
    """Number of training steps; 0, for no folder says it."""
    scheduler: Scheduler = Scheduler()
    """Chain, prediction and steps, as the folder's scheduler has them; of a network alone
    diffusers' default, DDPM's chain of 1000 steps."""
    num_steps: int | None = None
    """Number of the sampler's steps; None for all of the chain."""
    eta: float = 0.0
    """Share of the noise in the steps of DDIM."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance, of a network that is told a class; 1 for none."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """What may be changed of an autoencoder."""

    run_dir: str
    """Path of the folder."""
    steps: int = 0
    """Number of training steps; 0, for no folder says it."""
    image_size: int = 32
    """Height and width of the images; the networks take any that they can halve."""
    scaling_factor: float = 0.18215
    """Factor of the latents for a second stage: `continuous(..., scale=run.config.scaling_factor)`
    of `jaxgen.families.latent`."""


class _Part(NamedTuple):
    """A family and what it is called with; its data are images or latents of a shape."""

    family: Family
    variables: Variables
    shape: tuple[int, int, int]


class _Network(NamedTuple):
    """A denoising network with its parameters."""

    network: nn.Module
    params: Params
    shape: tuple[int, int, int]
    num_classes: int | None
    out_channels: int


def is_one(folder: Path) -> bool:
    """Whether a folder is one of diffusers: a pipeline's, or a model's."""
    return (folder / INDEX).is_file() or (
        (folder / CONFIG).is_file() and _CLASS in read(folder / CONFIG)
    )


def open_folder(folder: Path, strategy: JitStrategy, changes: Mapping[str, Any]) -> Run:
    """The run of a folder.

    Args:
        folder: Folder that `save_pretrained` wrote, of a `UNet2DModel`, a `DiTTransformer2DModel`,
            an `AutoencoderKL`, a `DDPMPipeline`, a `DDIMPipeline` or a `DiTPipeline`.
        strategy: Strategy that places the variables on devices.
        changes: Fields of the run's config to replace: `DenoiserConfig` or `AutoencoderConfig`.

    Returns:
        The run. Its data are a set of one black image, for no folder names its data.

    Raises:
        FileNotFoundError: If a file of the folder is missing.
        ValueError: If the folder is of another class, an option of a config is unknown or of a
            value that ours cannot have (named), an array does not fit, or a change is of no field.
    """
    place = folder / INDEX if (folder / INDEX).is_file() else folder / CONFIG
    kind = read(place).get(_CLASS, "")
    openers: Mapping[str, Callable[..., tuple[_Part, Any]]] = {
        "AutoencoderKL": _autoencoder,
        "DDIMPipeline": _unet_pipeline,
        "DDPMPipeline": _unet_pipeline,
        "DiTPipeline": _dit_pipeline,
        "UNet2DModel": _network_alone,
        **dict.fromkeys(_DIT, _network_alone),
    }
    if kind not in openers:
        raise ValueError(f"{place}: {_CLASS} must be one of {', '.join(openers)}, got {kind!r}")
    try:
        part, config = openers[kind](folder, kind, changes)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    variables = Variables(*map(strategy.put_replicated, part.variables))
    family = part.family._replace(fixed=variables.fixed)
    experiment = _experiment(family, part.shape, kind)
    return Run(family, variables, config, experiment, 0, f"diffusers.{kind}", strategy=strategy)


def _network_alone(folder: Path, kind: str, changes: Mapping[str, Any]) -> tuple[_Part, Any]:
    network = (_dit if kind in _DIT else _unet)(folder)
    scheduler = Scheduler(variance_type=_default_variance(network))
    config = configs.replace(DenoiserConfig(str(folder), scheduler=scheduler), changes)
    return _denoiser(network, config), config


def _default_variance(network: _Network) -> str:
    learns = network.out_channels == 2 * network.shape[-1]
    return "learned_range" if learns else Scheduler().variance_type


def _unet_pipeline(folder: Path, kind: str, changes: Mapping[str, Any]) -> tuple[_Part, Any]:
    check_options(read(folder / INDEX), ("scheduler", "unet"), prefix="model_index.")
    scheduler = _scheduler(folder)
    if kind == "DDIMPipeline":  # which makes any scheduler this one, and takes 50 steps
        scheduler = replace(scheduler, kind=diffusers_scheduler.DDIM)
    num_steps = min(50, scheduler.num_train_timesteps) if kind == "DDIMPipeline" else None
    config = DenoiserConfig(str(folder), scheduler=scheduler, num_steps=num_steps)
    config = configs.replace(config, changes)
    return _denoiser(_unet(_below(folder, "unet")), config), config


def _dit_pipeline(folder: Path, kind: str, changes: Mapping[str, Any]) -> tuple[_Part, Any]:
    index = read(folder / INDEX)
    known = ("id2label", "scheduler", "transformer", "vae")
    check_options(index, known, prefix="model_index.")
    network, scheduler = _dit(_below(folder, "transformer")), _scheduler(folder)
    num_steps = min(50, scheduler.num_train_timesteps)
    config = DenoiserConfig(str(folder), 0, scheduler, num_steps, guidance_scale=4.0)
    config = configs.replace(config, changes)
    second = _denoiser(network, config, _class_names(index.get("id2label"), network.num_classes))
    first, of_first = _autoencoder(_below(folder, "vae"), "AutoencoderKL", {})
    codec = continuous(
        first.family, first.variables, scale=of_first.scaling_factor, continuous=True
    )
    family = on_latents(second.family, codec)
    factor = diffusers_autoencoder.from_config(read(_below(folder, "vae") / CONFIG))[0].factor
    variables = Variables(second.variables.params, {}, family.fixed)
    shape = (second.shape[0] * factor, second.shape[1] * factor, first.shape[-1])
    return _Part(family, variables, shape), config


def _denoiser(
    network: _Network, config: DenoiserConfig, class_names: tuple[str, ...] = ()
) -> _Part:
    """The family of a network, whose data are images where they have the channels of some."""
    scheduler, channels = config.scheduler, network.shape[-1]
    num_classes = network.num_classes
    family = diffusion(
        network.network,
        scheduler.chain(),
        optax.adam(_RATE),
        image_shape=network.shape,
        parametrization=scheduler.parametrization(),
        learns_variance=network.out_channels == 2 * channels,
        conditioning=None if num_classes is None else labels(num_classes, class_names),
        sampler=scheduler.sampler(
            config.num_steps, eta=config.eta, guidance_scale=config.guidance_scale
        ),
        bound_variance=scheduler.variance(),
    )
    if not _is_image(network.shape):  # bounds are of 8-bit data
        family = family._replace(log_prob=None, bound=None)
    return _Part(family, Variables({denoising.NAME: network.params}, {}), network.shape)


def _autoencoder(folder: Path, kind: str, changes: Mapping[str, Any]) -> tuple[_Part, Any]:
    given = read(folder / CONFIG)
    sizes, channels = diffusers_autoencoder.from_config(given)
    config = AutoencoderConfig(str(folder))
    own = {"image_size": given.get("sample_size"), "scaling_factor": given.get("scaling_factor")}
    config = replace(config, **{name: value for name, value in own.items() if value is not None})
    config = configs.replace(config, changes)
    params = diffusers_autoencoder.to_jaxgen(_arrays(folder), sizes, channels)
    shape = (config.image_size, config.image_size, channels)
    family = first_stage(
        Encoder(sizes, moments=2),
        Decoder(sizes, channels),
        gaussian(),
        optax.adam(_RATE),
        image_shape=shape,
    )
    return _Part(family, Variables(params, {}), shape), config


def _unet(folder: Path) -> _Network:
    config = read(folder / CONFIG)
    layout = diffusers_unet.from_config(config)
    params = diffusers_unet.to_jaxgen(_arrays(folder), *layout)
    network, shape, num_classes, _ = layout
    return _Network(network, params, shape, num_classes, config["out_channels"])


def _dit(folder: Path) -> _Network:
    network, shape, num_classes = diffusers_dit.from_config(read(folder / CONFIG))
    params = diffusers_dit.to_jaxgen(_arrays(folder), network, shape, num_classes)
    return _Network(network, params, shape, num_classes, network.out_channels or shape[-1])


def _scheduler(folder: Path) -> Scheduler:
    return diffusers_scheduler.from_config(read(_below(folder, "scheduler") / SCHEDULER))


def _below(folder: Path, name: str) -> Path:
    """The folder of a pipeline's part, which is the pipeline's own in those of 2022."""
    return folder / name if (folder / name).is_dir() else folder


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder's weights: the file of the usual name, or the only one."""
    usual = folder / WEIGHTS
    files = [usual] if usual.is_file() else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_safetensors(files[0])[0]
    pickles = [path.name for path in folder.glob("*.bin")]
    hint = f", and {pickles[0]} is a pickle, which is not read: " if pickles else ": "
    raise FileNotFoundError(
        f"{folder} must hold one file .safetensors, it has {len(files)}{hint}"
        "write it by save_pretrained(..., safe_serialization=True, max_shard_size='100GB')"
    )


def _class_names(given: Mapping[str, str] | None, num_classes: int | None) -> tuple[str, ...]:
    """The names of the classes, of `{"0": "tench", ...}`; () where not all are named."""
    names = tuple((given or {}).get(str(i), "") for i in range(num_classes or 0))
    return names if all(names) else ()


def _is_image(shape: tuple[int, int, int]) -> bool:
    return shape[-1] in (1, 3)


def _experiment(family: Family, shape: tuple[int, int, int], kind: str) -> Experiment:
    """What a `Run` asks for beside its family: the medium, and data of the right shape."""
    is_image = _is_image(shape)
    one = np.zeros((1, *shape), np.uint8 if is_image else np.float32)
    arrays: dict[str, np.ndarray] = {"image": one} if is_image else {"vector": one}
    source = ArraySource(arrays, name="none", protocol=f"none: diffusers' {kind} names no data")
    return Experiment(
        family,
        Pipeline(source, 1, seed=0),
        source,
        prepare_images(flip=False) if is_image else _prepare_latents,
        IMAGES if is_image else LATENTS,
    )


def _prepare_latents(key: Any, raw: Mapping[str, Any], train: bool) -> dict[str, Any]:
    return {"image": raw["vector"]}
