"""WaveNet on a folder of recordings (van den Oord et al. 2016): any WAV files, told their class.

The paper has no comparable figure: its speech was judged by listeners, and was not published. What
this code has measured, in bits a sample of mu-law audio, stands in docs/results.md.

    python -m experiments.wavenet_audio --data.dir recordings
    python -m experiments.wavenet_audio --data.dir recordings --audio.sample-rate 16000 \
        --audio.resample --audio.label folder
    python -m experiments.wavenet_audio sample --num 4 --sample-seconds 2 --out speech.wav
    python -m experiments.wavenet_audio evaluate

Sampling writes a WAV file and a picture of its spectrogram, speech.png. On two CPU cores take
--model.stacks 2 --model.channels 32 --model.skip-channels 64 --audio.window 4000.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from jaxgen import conditioning
from jaxgen.conditioning import Conditioning
from jaxgen.data.audio import audio_folder, from_model_space, to_model_space
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.transforms import to_uint8
from jaxgen.families.wavenet import wavenet
from jaxgen.models.wavenet import WaveNet
from jaxgen.training.audio import wav_files
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.optim import adam
from jaxgen.training.pictures import by_row


@dataclass(frozen=True)
class AudioConfig:
    """How recordings become examples."""

    sample_rate: int | None = None
    """In Hz; that of the first file by default."""
    resample: bool = False
    """Take files of other rates, resampled; otherwise they are an error."""
    window: int = 16_000
    """Samples of an example."""
    label: Literal["none", "folder", "word"] = "none"
    """What the network is told: nothing, the file's subfolder, or its name up to the first "_"."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    stacks: int = 3
    """How often the dilations 1, 2, 4, ... are gone through."""
    layers: int = 10
    """Layers of a stack."""
    channels: int = 64
    """Of the residual layers."""
    skip_channels: int = 256
    """Of the layers' sum and the last two convolutions."""
    kernel_size: int = 2
    """Taps of each causal convolution."""
    output: Literal["mu_law", "mixture_of_logistics"] = "mu_law"
    """A softmax over mu-law classes, or a discretized mixture of logistics over equal steps."""
    num_values: int = 256
    """Values of a sample; 65536 for 16-bit audio as it is (mixture_of_logistics)."""
    mixtures: int = 10
    """Logistics of a mixture."""
    full_context: bool = False
    """Predict only samples before which the window holds all that the network can see."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam."""

    learning_rate: float = 1e-3
    """After warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    decay_steps: int | None = None
    """Steps at whose end the rate is 0; constant by default."""
    clip_norm: float = 10_000.0
    """Greatest global norm of the gradient, of nats an example (a second has some 50,000)."""
    ema: float = 0.999
    """Decay of the parameters' average, which samples and evaluations use."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Thirty layers that see 3,070 samples back (0.19 s at 16 kHz), on windows of a second."""

    run_dir: str = operational("runs/wavenet_audio")
    steps: int = operational(200_000)
    batch_size: int = 8
    sample_every: int = operational(5000)
    checkpoint_every: int = operational(5000)
    data: DataConfig = DataConfig(name="folder")
    """The folder of WAV files is --data.dir; a tenth of the files is held out, by their names."""
    audio: AudioConfig = AudioConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    temperature: float = operational(1.0)
    """Of samples: below 1 the likely becomes likelier."""
    sample_seconds: float = operational(1.0)
    """Length of samples."""


def build(config: Config) -> Experiment:
    """The experiment of a config: network, family, data."""
    audio, model, optimizer = config.audio, config.model, config.optimizer
    train, held_out = (_load(config, split) for split in (config.data.split, config.data.held_out))
    rate = train.sample_rate
    condition: Conditioning | None = None
    if audio.label != "none":
        condition = conditioning.labels(len(train.class_names))
    is_mu_law = model.output == "mu_law"
    encoding = "mu_law" if is_mu_law else "linear"
    network = WaveNet(
        num_outputs=model.num_values if is_mu_law else 3 * model.mixtures,
        num_values=model.num_values if is_mu_law else None,
        stacks=model.stacks,
        layers=model.layers,
        channels=model.channels,
        skip_channels=model.skip_channels,
        kernel_size=model.kernel_size,
        dtype=jnp.dtype(config.precision),
    )
    context = network.receptive_field if model.full_context else 0
    if context >= audio.window:
        raise ValueError(
            f"--model.full-context needs --audio.window above {context} samples, which the network "
            f"sees, got {audio.window}"
        )
    family = wavenet(
        network,
        adam(
            optimizer.learning_rate,
            warmup_steps=optimizer.warmup_steps,
            decay_steps=optimizer.decay_steps,
            clip_norm=optimizer.clip_norm,
        ),
        num_samples=audio.window,
        output=model.output,
        num_values=model.num_values,
        conditioning=condition,
        context=context,
        temperature=config.temperature,
        sample_length=round(config.sample_seconds * rate),
    )

    def prepare(key, raw, train: bool):
        return {**raw, "audio": to_model_space(raw["audio"], encoding, model.num_values)}

    return Experiment(
        family=family,
        pipeline=Pipeline(train, config.batch_size, seed=config.seed),
        held_out=held_out,
        prepare=prepare,
        to_images=to_uint8,
        samples_are_images=False,
        sample_files=wav_files(rate, lambda x: from_model_space(x, encoding, model.num_values)),
        ema=optimizer.ema,
        sample_condition=None if condition is None else by_row(condition.sweep),
        grid=(1, 4),
        protocol={
            "loss": f"exact nats a window of the audio in {model.num_values} values, {encoding}; "
            f"bits_per_sample by each of the {audio.window - context} predicted samples"
            + (f" after {context} given ones" if context else ", the first ones without a past"),
            "data": held_out.protocol,
            "num_examples": len(held_out),
            "sample_rate": rate,
        },
    )


def _load(config: Config, split: str | None):
    """The windows of a split of the folder."""
    data, audio = config.data, config.audio
    if data.name != "folder":
        raise ValueError(f"--data.name must be folder, got {data.name!r}")
    if data.dir is None:
        raise ValueError("--data.dir must name a folder of WAV files")
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


if __name__ == "__main__":
    main(Config, build)
