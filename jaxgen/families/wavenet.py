"""WaveNets: a causal network over raw audio and an optimizer become a `Family`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxgen.checks import check_choice
from jaxgen.conditioning import base as conditions
from jaxgen.conditioning.base import Condition, Conditioning
from jaxgen.core import (
    Aux,
    Batch,
    Bound,
    Family,
    Metrics,
    Optimizer,
    Phase,
    PyTree,
    Sampling,
    Variables,
)
from jaxgen.losses.autoregressive import categorical_nll, mixture_of_logistics_nll
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.models.wavenet import WaveNet
from jaxgen.sampling.autoregressive import (
    Draw,
    ancestral,
    check_completion,
    draw_categorical,
    draw_mixture_of_logistics,
)

NAME, PHASE = "wavenet", "likelihood"

Values = Float[Array, " batch"]


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

    `sample` draws by the cached sampler, `jaxgen.sampling.autoregressive.ancestral`, in model
    space. `complete` keeps the samples `given` [B, T] where `known`, bool[B, T], is true: the
    beginning of a recording, say, which is then gone on with. Both take one more option, `local`,
    the local features f32[B, ceil(T / network.hop), F] of what is drawn, where the network takes
    such.

    Args:
        network: A network of `num_values` classes and as many outputs for "mu_law"; of numbers
            (`num_values=None`) and 3 outputs for each logistic otherwise.
        optimizer: The optimizer of all parameters.
        num_samples: Length T of an example, in samples.
        output: Meaning of the network's output: "mu_law" or "mixture_of_logistics".
        num_values: Number of values that a sample can take.
        conditioning: What the network is conditioned on for an example as a whole, or None.
        local: The batch's entry of local features f32[B, ceil(T / network.hop), F], or None.
        context: Number of an example's first samples that are given, not predicted: the loss is
            `-log p(x[context:] | x[:context])`. With `network.receptive_field` each predicted
            sample has all the past that the network can see.
        temperature: Temperature of samples, see the `draw_...` of
            `jaxgen.sampling.autoregressive`.
        sample_length: Number of samples that `sample` draws; `num_samples` by default.

    Raises:
        ValueError: An argument out of its range, or a network that does not fit the others.
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
    draw_value = _drawer(output, num_values, temperature)
    is_mu_law = output == "mu_law"

    def apply(variables: Variables, *args: Any, **options: Any) -> Any:
        return network.apply({"params": variables.params[NAME]}, *args, **options)

    def data(variables: Variables, batch: Batch) -> tuple[Array, Condition | None, Array | None]:
        """(audio, condition or None, local features or None)."""
        audio, features = _audio(batch, local, num_samples, is_mu_law)
        return audio, conditions.encode_batch(conditioning, variables, batch), features

    def init(key: Key[Array, ""], batch: Batch, fixed: Mapping[str, PyTree] = {}) -> Variables:
        params = conditions.init(conditioning, jax.random.fold_in(key, 1))
        audio, condition, features = data(Variables(params, {}, fixed), batch)
        # The parameters do not depend on the length: a few frames make the tracing short.
        short = min(num_samples, network.hop)
        features = None if features is None else features[:1, : -(-short // network.hop)]
        first = jax.tree.map(lambda x: x[:1], condition)
        params[NAME] = network.init(key, audio[:1, :short], first, features)["params"]
        return Variables(params, {}, fixed)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> tuple[Values, Metrics]:
        audio, condition, features = data(variables, batch)
        outputs = apply(variables, audio, condition, features)[:, context:]
        audio = audio[:, context:]
        if is_mu_law:
            nats = categorical_nll(outputs, audio)
        else:
            nats = mixture_of_logistics_nll(_mixtures(outputs), audio[..., None], num_values)
        return nats, {"bits_per_sample": bits_per_dim(nats, audio.shape[1])}

    def loss(variables: Variables, batch: Batch, key: Array, step: Array) -> tuple[Values, Aux]:
        nats, metrics = evaluate(variables, batch, key)
        return nats, Aux(metrics)

    def log_prob(variables: Variables, batch: Batch, key: Array) -> Values:
        return -evaluate(variables, batch, key)[0]

    def draw(
        variables: Variables,
        key: Array,
        shape: tuple[int, int],
        condition: Any,
        features: Array | None,
        given: Array | None = None,
        known: Array | None = None,
    ) -> Array:
        _check_local(features, local)
        num, time = shape
        encoded = conditions.encode(conditioning, variables, condition)
        prepared = apply(variables, time, encoded, features, method="conditions")

        def step(cache: PyTree, previous: Array, t: Array) -> tuple[Array, PyTree]:
            return apply(variables, cache, previous, t, prepared, method="step")

        values, _ = ancestral(
            step,
            network.init_cache(num),
            jnp.zeros(num, jnp.int32 if is_mu_law else jnp.float32),
            key,
            time,
            draw_value,
            given=given,
            known=known,
        )
        return values

    def sample(variables: Variables, key: Array, num: int, *, condition=None, local=None) -> Array:
        return draw(variables, key, (num, length), condition, local)

    def complete(
        variables: Variables, key: Array, given, known, *, condition=None, local=None
    ) -> Array:
        if given.ndim != 2:
            raise ValueError(f"given must be [B, T], got {list(given.shape)}")
        _check_type("given", given, is_mu_law)
        check_completion(given, known, given.shape)
        return draw(variables, key, given.shape, condition, local, given, known)

    trains = (NAME, *conditions.trains(conditioning))
    return Family(
        init,
        optimizers={PHASE: Optimizer(trains, optimizer)},
        phases=(Phase(PHASE, PHASE, loss),),
        evaluate=evaluate,
        sample=sample,
        log_prob=log_prob,
        bound=Bound(
            "exact",
            num_samples - context,
            eight_bit=is_mu_law and num_values == 256,
            given=conditions.key_of(conditioning) or local,
        ),
        complete=complete,
        conditioning=conditioning,
        fixed=conditions.fixed(conditioning),
        name="Autoregressive",
        sampling=Sampling(length, "one sample of the audio after another"),
    )


def _audio(
    batch: Batch, local: str | None, num_samples: int, is_mu_law: bool
) -> tuple[Array, Array | None]:
    """(audio, local features or None) of a batch."""
    for entry in ("audio", local):
        if entry is not None and entry not in batch:
            raise ValueError(f"the batch must have {entry!r}, it has {sorted(batch)}")
    audio = batch["audio"]
    if audio.ndim != 2 or audio.shape[1] != num_samples:
        raise ValueError(f"audio must be [B, {num_samples}], got {list(audio.shape)}")
    _check_type("audio", audio, is_mu_law)
    # Classes of few bits cannot be compared with their number.
    audio = audio.astype(jnp.int32) if is_mu_law else audio
    return audio, None if local is None else batch[local]


def _check_type(name: str, audio: Array, is_mu_law: bool) -> None:
    integers = jnp.issubdtype(audio.dtype, jnp.integer)
    if integers != is_mu_law or audio.dtype in (jnp.int16, jnp.uint8):
        wanted = "i32 classes for mu_law" if is_mu_law else "f32 numbers in [-1, 1]"
        raise TypeError(
            f"{name} must be {wanted}, as jaxgen.data.audio.to_model_space makes them, got "
            f"{audio.dtype}"
        )


def _check_local(features: Array | None, local: str | None) -> None:
    if (features is None) == (local is None):
        return
    if local is None:
        raise ValueError("local must be None: the network takes no local features")
    raise ValueError(f"local must be given: the network is conditioned on {local!r}")


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
