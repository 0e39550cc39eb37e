"""What the recipes of all families share: groups of flags, and what is made of them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxgen.conditioning.attributes import attributes, embeddings
from jaxgen.conditioning.base import Conditioning
from jaxgen.conditioning.labels import labels
from jaxgen.data.sources import Source
from jaxgen.training import averages
from jaxgen.training.averages import Average
from jaxgen.training.optim import Rated, Schedule, adam

from .text import TextConfig, text_conditioning

_EXAMPLES = 512  # of the data's conditions
Conditions = Literal["none", "label", "attributes", "text", "embedding"]


@dataclass(frozen=True)
class AdamConfig:
    """Adam."""

    learning_rate: float = 1e-3
    """Learning rate after the warm-up."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Number added to the root of the second moment."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 0."""
    schedule: Schedule | None = None
    """Course of the rate after the warm-up: constant, or falling to 0 at the end of `decay_steps`,
    linearly or along half a cosine. None for linear where there are `decay_steps`, else constant.
    """
    decay_steps: int | None = None
    """Steps at whose end the rate of a linear or cosine schedule is 0."""
    decay_rate: float | None = None
    """Factor of the rate every `decay_every` updates after the warm-up; None for none."""
    decay_every: int = 1
    """Number of updates over which the rate is constant before its next decay."""
    clip_norm: float | None = None
    """Greatest global norm of the gradient; None for no clipping."""
    weight_decay: float = 0.0
    """Share of each parameter that is taken away at an update, in units of the rate (AdamW)."""


@dataclass(frozen=True)
class AverageConfig:
    """The moving average of the parameters, which samples and evaluations use."""

    decay: float = 0.999
    """Decay of the average from one step to the next; 0 for the last parameters."""
    warm_up: bool = True
    """Let the decay after t steps be at most (1 + t) / (10 + t)."""
    half_life: float | None = None
    """Half-life of the average in examples, in the place of a decay."""
    ramp_up: float | None = None
    """Greatest half-life as a share of the examples seen so far; None for no such limit."""
    sigma_rel: float | None = None
    """Width of a power-function average (EDM2) as a share of the training, in the place of a
    decay."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How `evaluate` measures."""

    num_examples: int | None = None
    """Number of held-out examples that are evaluated, from the first on; None for all."""


def make_adam(config: AdamConfig, *, repeats: int = 1, infinity: bool = False) -> Rated:
    """Adam of the flags, or Adamax; `repeats` updates a step are one step of its schedules."""
    decay_steps = None if config.decay_steps is None else config.decay_steps * repeats
    return adam(
        config.learning_rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        warmup_steps=config.warmup_steps * repeats,
        schedule=config.schedule,
        decay_steps=decay_steps,
        decay_rate=config.decay_rate,
        decay_every=config.decay_every,
        clip_norm=config.clip_norm,
        infinity=infinity,
        weight_decay=config.weight_decay,
    )


def make_averages(
    config: AverageConfig, batch_size: int, *, of: tuple[str, ...] | None = None
) -> dict[str, Average]:
    """The average of the flags, under the name "ema"; none where the decay is 0.

    Args:
        config: The flags.
        batch_size: The examples of a step, for a half-life in examples.
        of: The networks to average; None for all.

    Raises:
        ValueError: if a number is out of its range.
    """
    if config.sigma_rel is not None:
        if config.half_life is not None or config.ramp_up is not None:
            raise ValueError("--average.sigma-rel must be alone, without a half-life or ramp-up")
        average = averages.power_function(config.sigma_rel, of=of)
    elif config.half_life is not None:
        average = averages.half_life(config.half_life, batch_size, ramp_up=config.ramp_up, of=of)
    elif config.ramp_up is not None:
        raise ValueError("--average.ramp-up needs --average.half-life")
    elif not config.decay:
        return {}
    else:
        make = averages.warmed_up if config.warm_up else averages.constant
        average = make(config.decay, of=of)
    return {"ema": average}


def make_conditioning(
    condition: Conditions,
    source: Source,
    text: TextConfig | None = None,
    *,
    with_tokens: bool = False,
) -> Conditioning | None:
    """What a network is told of the examples of a source.

    Args:
        condition: The value of `--model.condition`.
        source: The examples; their captions as tokens where the condition is a text.
        text: The flags of captions, of a recipe that has some.
        with_tokens: Whether the network reads a text's tokens one by one.

    Raises:
        ValueError: if the source has no such entry.
    """
    if condition == "none":
        return None
    if condition == "label":
        if source.num_classes is None:
            raise ValueError(f"--model.condition label needs labels; {source.name} has none")
        return labels(source.num_classes, source.class_names)
    if condition == "text":
        return text_conditioning(text or TextConfig(), source, with_tokens=with_tokens)
    if condition not in source.spec:
        raise ValueError(
            f"--model.condition {condition} needs an entry {condition!r}; {source.name} has "
            f"{sorted(source.spec)}"
        )
    ((width,), _) = source.spec[condition]
    if condition == "attributes":
        rows = np.linspace(0, len(source) - 1, min(len(source), _EXAMPLES)).astype(np.int64)
        examples = np.asarray(source[rows]["attributes"])
        return attributes(width, getattr(source, "attribute_names", ()), examples)
    return embeddings(width)


def count_evaluated(held_out: Source, num_examples: int | None) -> int:
    """The number of held-out examples that `evaluate` reads."""
    return min(len(held_out), num_examples or len(held_out))


def protocol(held_out: Source, num_examples: int | None = None, **entries: Any) -> dict[str, Any]:
    """What every number of `evaluate` names, and the recipe's own entries."""
    return {
        **entries,
        "data": held_out.protocol,
        "num_examples": count_evaluated(held_out, num_examples),
    }
