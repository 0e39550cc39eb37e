"""WaveNet on a folder of recordings, their class by flag (van den Oord et al. 2016).

The paper has no comparable figure: its speech was judged by listeners, and was not published. What
this code has measured, in bits a sample of mu-law audio, stands in docs/results.md.

    python -m experiments.wavenet_audio --data.dir recordings
    python -m experiments.wavenet_audio --data.dir recordings --audio.sample-rate 16000 \
        --audio.resample --audio.label folder --model.condition label
    python -m experiments.wavenet_audio sample --num 4 --sample-seconds 2 --out speech.wav
    python -m experiments.wavenet_audio evaluate

Sampling writes a WAV file and a picture of its spectrogram, speech.png. On two CPU cores take
--model.stacks 2 --model.channels 32 --model.skip-channels 64 --audio.window 4000.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from jaxgen.core import Family
from jaxgen.data.audio import AudioSource, audio_folder, from_model_space, to_model_space
from jaxgen.data.pipeline import Pipeline
from jaxgen.families.wavenet import wavenet
from jaxgen.models.wavenet import WaveNet
from jaxgen.training.audio import sound
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.recipe import Recipe

from .recipes.shared import (
    AdamConfig,
    AverageConfig,
    EvaluationConfig,
    make_adam,
    make_averages,
    make_conditioning,
    protocol,
)


@dataclass(frozen=True)
class AudioConfig:
    """How recordings become examples."""

    sample_rate: int | None = None
    """Sample rate in Hz; by default that of the first file."""
    resample: bool = False
    """Take files of other rates, resampled; otherwise they are an error."""
    window: int = 16_000
    """Number of samples of an example."""
    label: Literal["none", "folder", "word"] = "none"
    """Label of a recording: none, the file's subfolder, or its name up to the first "_"."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    stacks: int = 3
    """Number of times that the dilations 1, 2, 4, ... are gone through."""
    layers: int = 10
    """Number of layers of a stack."""
    channels: int = 64
    """Number of channels of the residual layers."""
    skip_channels: int = 256
    """Number of channels of the layers' sum and the last two convolutions."""
    kernel_size: int = 2
    """Number of taps of each causal convolution."""
    output: Literal["mu_law", "mixture_of_logistics"] = "mu_law"
    """Kind of output: a softmax over mu-law classes, or a discretized mixture of logistics over
    equal steps."""
    num_values: int = 256
    """Number of values of a sample; 65536 for 16-bit audio as it is (mixture_of_logistics)."""
    mixtures: int = 10
    """Number of logistics of a mixture."""
    condition: Literal["none", "label"] = "none"
    """Condition of the network for a recording as a whole; needs --audio.label."""
    full_context: bool = False
    """Predict only samples before which the window holds all that the network can see."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of WaveNet on a folder of recordings."""

    data: DataConfig = DataConfig(name="folder")
    """The folder of recordings is --data.dir; a tenth of the files is held out, by their names."""
    audio: AudioConfig = AudioConfig()
    model: ModelConfig = ModelConfig()
    # Of nats an example, and a second has some 50,000: so the norm of the gradient is large.
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3, warmup_steps=100, clip_norm=10_000.0)
    average: AverageConfig = AverageConfig()
    temperature: float = operational(1.0)
    """Temperature of samples: below 1 the likely becomes likelier."""
    sample_seconds: float = operational(1.0)
    """Length of samples in seconds."""
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    audio, model = config.audio, config.model
    train, held_out = (_load(config, split) for split in (config.data.split, config.data.held_out))
    encoding = "mu_law" if model.output == "mu_law" else "linear"
    if model.condition != "none" and audio.label == "none":
        raise ValueError("--model.condition label needs --audio.label folder or word")
    network = make_network(config)
    context = network.receptive_field if model.full_context else 0
    if context >= audio.window:
        raise ValueError(
            f"--model.full-context needs --audio.window above {context} samples, which the network "
            f"sees, got {audio.window}"
        )
    family = make_family(config, network, context, train)

    def prepare(key, raw, train: bool):
        return {**raw, "audio": to_model_space(raw["audio"], encoding, model.num_values)}

    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare,
        medium=sound(train.sample_rate, lambda x: from_model_space(x, encoding, model.num_values)),
        averages=make_averages(config.average, config.batch_size),
        num_evaluated=config.evaluation.num_examples,
        protocol=protocol(
            held_out,
            config.evaluation.num_examples,
            loss=f"exact nats a window of the audio in {model.num_values} values, {encoding}; "
            f"bits_per_sample by each of the {audio.window - context} predicted samples"
            + (f" after {context} given ones" if context else ", the first ones without a past"),
            sample_rate=train.sample_rate,
        ),
    )


def make_network(config: Config) -> WaveNet:
    """The network of the flags."""
    model = config.model
    is_mu_law = model.output == "mu_law"
    return WaveNet(
        num_outputs=model.num_values if is_mu_law else 3 * model.mixtures,
        num_values=model.num_values if is_mu_law else None,
        stacks=model.stacks,
        layers=model.layers,
        channels=model.channels,
        skip_channels=model.skip_channels,
        kernel_size=model.kernel_size,
        dtype=jnp.dtype(config.precision),
    )


def make_family(config: Config, network: WaveNet, context: int, train: AudioSource) -> Family:
    """The network and its likelihood, of which the first `context` samples are given."""
    return wavenet(
        network,
        make_adam(config.optimizer),
        num_samples=config.audio.window,
        output=config.model.output,
        num_values=config.model.num_values,
        conditioning=make_conditioning(config.model.condition, train),
        context=context,
        temperature=config.temperature,
        sample_length=round(config.sample_seconds * train.sample_rate),
    )


def _load(config: Config, split: str | None) -> AudioSource:
    """The windows of a split of the folder."""
    data, audio = config.data, config.audio
    if data.name != "folder":
        raise ValueError(f"--data.name must be folder, got {data.name!r}")
    if data.dir is None:
        raise ValueError("--data.dir must name a folder of recordings")
    if data.resize is not None:
        raise ValueError(f"--data.resize is for images, got {data.resize} for audio")
    return audio_folder(
        data.dir,
        split or "all",
        num_samples=audio.window,
        sample_rate=audio.sample_rate,
        resample=audio.resample,
        label=audio.label,
    )


recipe = Recipe(
    build,
    # Thirty layers that see 3,070 samples back (0.19 s at 16 kHz), on windows of a second.
    Config(
        run_dir="runs/wavenet_audio",
        steps=200_000,
        batch_size=8,
        sample_every=5000,
        checkpoint_every=5000,
    ),
    data="folder of WAV files",
)

if __name__ == "__main__":
    recipe.main()
