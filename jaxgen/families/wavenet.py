"""WaveNets: a causal network over raw audio and an optimizer become a `Family`."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxgen import conditioning as conditions
from jaxgen.conditioning import Conditioning
from jaxgen.core import Aux, Batch, Bound, Family, Params, Phase, PyTree
from jaxgen.losses.autoregressive import categorical_nll, mixture_of_logistics_nll
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.models.wavenet import WaveNet
from jaxgen.primitives import check_choice
from jaxgen.sampling.autoregressive import (
    Draw,
    ancestral,
    draw_categorical,
    draw_mixture_of_logistics,
)

NAME = "wavenet"


def wavenet(
    network: WaveNet,
    optimizer: optax.GradientTransformation,
    *,
    num_samples: int,
    output: str = "mu_law",
    num_values: int = 256,
    conditioning: Conditioning | None = None,
    local: str | None = None,
    context: int = 0,
    temperature: float = 1.0,
    sample_length: int | None = None,
) -> Family:
    """The family of WaveNets (van den Oord et al. 2016), trained by exact likelihood.

    A batch's `audio` is what `jaxgen.data.audio.to_model_space` makes of the samples at rest, and
    the likelihood is of just that, `num_values` values a sample:

    - "mu_law": classes i32[B, T] of the companded audio, under a softmax. The likelihood is of the
      mu-law classes (256 of them: of 8-bit mu-law audio).
    - "mixture_of_logistics": f32[B, T], the centres of `num_values` equal steps of [-1, 1], under
      a discretized mixture of logistics. The likelihood is of the audio in these steps: of 16-bit
      audio as it is with 65,536 values.

    Figures of the two are of different data and do not compare. Loss and `-log_prob` are exact, in
    nats per example; the metric `bits_per_sample` is the same by predicted sample. Each example is
    predicted from its own first sample on, which nothing comes before, unless `context` is given.

    `sample(params, model_state, key, num, *, condition=None, local=None, given=None, known=None)`
    draws by the cached sampler, `jaxgen.sampling.autoregressive.ancestral`, in model space. `given`
    [num, T] with `known` bool[num, T] keeps what is known (the beginning of a recording, which is
    then gone on with).

    Args:
        network: of `num_values` classes and as many outputs for "mu_law"; of numbers
            (`num_values=None`) and 3 outputs for each logistic otherwise.
        optimizer: of all parameters.
        num_samples: T, length of an example.
        output: see above.
        num_values: values a sample can take.
        conditioning: what the network is told of an example as a whole, or None.
        local: the batch's entry of features f32[B, ceil(T / network.hop), F], or None.
        context: the first so many samples of an example are given, not predicted: the loss is
            `-log p(x[context:] | x[:context])`. With `network.receptive_field` each predicted
            sample has all the past that the network can see.
        temperature: of `sample`; see the `draw_...` of `jaxgen.sampling.autoregressive`.
        sample_length: samples that `sample` draws; `num_samples` by default.

    Raises:
        ValueError: an argument out of its range, or a network that does not fit the others.
    """
    check_choice("output", output, ("mu_law", "mixture_of_logistics"))
    if num_values < 2:
        raise ValueError(f"num_values must be at least 2, got {num_values}")
    if not 0 <= context < num_samples:
        raise ValueError(f"context must be in 0..{num_samples - 1} (num_samples), got {context}")
    length = num_samples if sample_length is None else sample_length
    if length < 1:
        raise ValueError(f"sample_length must be at least 1, got {length}")
    _check_network(network, output, num_values)
    draw = _drawer(output, num_values, temperature)
    made = _WaveNet(
        network, num_samples, output, num_values, conditioning, local, context, length, draw
    )
    phase = Phase("likelihood", (NAME,), made.loss, optimizer)
    bound = Bound(
        "exact",
        num_samples - context,
        eight_bit=output == "mu_law" and num_values == 256,
        given=conditions.key_of(conditioning) or local,
    )
    return Family(made.init, (phase,), made.loss, made.sample, made.log_prob, bound=bound)


@dataclass(frozen=True)
class _WaveNet:
    """The functions of `wavenet`, around its arguments."""

    network: Any
    num_samples: int
    output: str
    num_values: int
    conditioning: Conditioning | None
    local: str | None
    context: int
    sample_length: int
    draw: Draw

    def init(self, key: Key[Array, ""], batch: Batch) -> tuple[Params, PyTree]:
        audio, e, local = self._data(batch)
        # The parameters do not depend on the length: a few frames make the tracing short.
        short = min(self.num_samples, self.network.hop)
        local = None if local is None else local[:1, : -(-short // self.network.hop)]
        e = None if e is None else e[:1]
        return {NAME: self.network.init(key, audio[:1, :short], e, local)["params"]}, {}

    def loss(self, params, model_state, batch, key, *, train: bool):
        audio, e, local = self._data(batch)
        outputs = self._apply(params, audio, e, local)[:, self.context :]
        audio = audio[:, self.context :]
        if self.output == "mu_law":
            nats = categorical_nll(outputs, audio)
        else:
            mixtures = _mixtures(outputs)
            nats = mixture_of_logistics_nll(mixtures, audio[..., None], self.num_values)
        return nats, Aux({"bits_per_sample": bits_per_dim(nats, audio.shape[1])}, model_state)

    def log_prob(self, params, model_state, batch, key):
        return -self.loss(params, model_state, batch, key, train=False)[0]

    def sample(
        self,
        params,
        model_state,
        key,
        num: int,
        *,
        condition: Array | None = None,
        local: Array | None = None,
        given: Array | None = None,
        known: Array | None = None,
    ):
        if (local is None) != (self.local is None):
            raise ValueError(
                "local must be None: the network takes no local features"
                if self.local is None
                else f"local must be given: the network is told {self.local!r}"
            )
        e = conditions.encode(self.conditioning, condition)
        told = self._apply(params, self.sample_length, e, local, method="tell")
        dtype = jnp.int32 if self.output == "mu_law" else jnp.float32

        def step(cache, previous, t):
            return self._apply(params, cache, previous, t, told, method="step")

        values, _ = ancestral(
            step,
            self.network.init_cache(num),
            jnp.zeros(num, dtype),
            key,
            self.sample_length,
            self.draw,
            given=given,
            known=known,
        )
        return values

    def _apply(self, params: Params, *args: Any, **options: Any) -> Any:
        return self.network.apply({"params": params[NAME]}, *args, **options)

    def _data(self, batch: Batch) -> tuple[Array, Array | None, Array | None]:
        """(audio, vectors or None, local features or None)."""
        for entry in ("audio", self.local):
            if entry is not None and entry not in batch:
                raise ValueError(f"the batch must have {entry!r}, it has {sorted(batch)}")
        audio = batch["audio"]
        if audio.ndim != 2 or audio.shape[1] != self.num_samples:
            raise ValueError(f"audio must be [B, {self.num_samples}], got {list(audio.shape)}")
        integers = jnp.issubdtype(audio.dtype, jnp.integer)
        if integers != (self.output == "mu_law") or audio.dtype in (jnp.int16, jnp.uint8):
            wanted = "i32 classes" if self.output == "mu_law" else "f32 numbers in [-1, 1]"
            raise TypeError(
                f"audio must be {wanted} for {self.output}, as jaxgen.data.audio.to_model_space "
                f"makes them, got {audio.dtype}"
            )
        e = conditions.encode_batch(self.conditioning, batch)
        return audio, e, None if self.local is None else batch[self.local]


def _drawer(output: str, num_values: int, temperature: float) -> Draw:
    if output == "mu_law":
        return draw_categorical(temperature)
    draw_pixel = draw_mixture_of_logistics(temperature, num_values)

    def draw(key: Array, params: Array) -> Array:
        return draw_pixel(key, _mixtures(params))[..., 0]

    return draw


def _mixtures(outputs: Array) -> Array:
    """`[..., 3 M]` -> `[..., 3, M]`: logits, means and log-scales."""
    return outputs.reshape(*outputs.shape[:-1], 3, -1)


def _check_network(network: WaveNet, output: str, num_values: int) -> None:
    if output == "mu_law":
        if network.num_values != num_values or network.num_outputs != num_values:
            raise ValueError(
                f"the network must have num_values = num_outputs = {num_values} for 'mu_law', got "
                f"{network.num_values} and {network.num_outputs}"
            )
    elif network.num_values is not None or network.num_outputs % 3:
        raise ValueError(
            "the network must have num_values None and a multiple of 3 num_outputs for "
            f"'mixture_of_logistics', got {network.num_values} and {network.num_outputs}"
        )
