"""A trained run as an object: what a notebook, a comparison or a second stage does with it."""

import base64
import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.conditioning.asked import rows_of
from jaxgen.core import Bound, Family, PyTree, Variables
from jaxgen.losses.reduce import bits_per_dim
from jaxgen.training import evaluation
from jaxgen.training.experiment import Experiment
from jaxgen.training.images import is_whole_png
from jaxgen.training.run_arguments import conditions_of, examples_of, latents_of
from jaxgen.training.strategies import JitStrategy, make_strategy
from jaxgen.training.tables import Table, read_rows
from jaxgen.training.writers import EVALUATIONS, MEASUREMENTS, METRICS

AT_ONCE = 128
"""Greatest number of examples in a compiled call, where there are so few devices."""


class LogProb(NamedTuple):
    """The log-likelihood of examples, and what is meant by it.

    Attributes:
        nats: Log-likelihood of each example in nats, f32[N]; a lower bound of it, unless `bound` is
            exact.
        bits_per_dim: Negative of it in bits for each number of an example, f32[N]; None unless the
            data are of 8 bits.
        bound: What the numbers are: exact or which bound, dequantized how, conditional on what.
    """

    nats: Float[np.ndarray, " batch"]
    bits_per_dim: Float[np.ndarray, " batch"] | None
    bound: Bound


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained run: everything needed to use it, to measure it and to build on it.

    `jaxgen.open_run` makes one. Its methods take and give examples as the data has them at rest
    (uint8 images, int16 audio, vectors) and NumPy arrays; they are compiled once for each number of
    examples. Which of them it has follows from the family: see `abilities`.

    Attributes:
        family: Functions of the model.
        variables: Variables for these functions, with averaged parameters where there is an
            average.
        config: Flags of the run.
        experiment: Experiment that was built from the flags.
        step: Number of training steps that were done.
        name: Name of the recipe's module, such as "experiments.ddpm_cifar".
        average: Name of the average that the parameters are of; None for those of the last step.
        strategy: Strategy whose devices hold the variables and compute.

    Examples:
        >>> run = jaxgen.open_run("runs/vae_digits")  # doctest: +SKIP
        >>> images = run.sample(16, seed=1)  # doctest: +SKIP
        >>> run.log_prob(images).nats.mean()  # doctest: +SKIP
        >>> z = run.encode(images)  # doctest: +SKIP
        >>> run.interpolate(z[:4], z[4:8], steps=8)  # doctest: +SKIP
    """

    family: Family
    variables: Variables
    config: Any
    experiment: Experiment
    step: int
    name: str
    average: str | None = None
    strategy: JitStrategy = field(default_factory=lambda: make_strategy("jit"))

    @property
    def abilities(self) -> tuple[str, ...]:
        """The names of the methods that the run's family has the functions for."""
        family, latents = self.family, self.family.latents
        has = {
            "sample": family.sample is not None,
            "log_prob": family.log_prob is not None and family.bound is not None,
            "encode": family.encode is not None,
            "decode": family.decode is not None,
            "draw_latents": latents is not None and latents.draw is not None,
            "interpolate": latents is not None and family.decode is not None,
        }
        return tuple(name for name, known in has.items() if known)

    def sample(self, num: int = 16, *, condition: Any = None, seed: int = 0) -> np.ndarray:
        """Samples at rest, those of the command `sample` with this seed.

        Args:
            num: Number of samples.
            condition: Class, attributes or text by name (`jaxgen.conditioning.asked.rows_of`); of
                several each is for an equal number of consecutive samples. None for all of the
                sweep.
            seed: Seed of the samples.

        Returns:
            uint8 [num, H, W, C] of images, [num, ...] of other media.

        Raises:
            ValueError: The family has no prior, `num` is out of range, or the model does not take
                the condition.
            FloatingPointError: Samples are not finite.
        """
        self._check("sample")
        rows = rows_of(self.family.conditioning, condition)
        return self._sample(self.variables, jax.random.key(seed), num, rows)

    def log_prob(
        self,
        images: np.ndarray | Array | Mapping[str, Any],
        *,
        condition: Any = None,
        seed: int = 0,
    ) -> LogProb:
        """The log-likelihood of each example, and what bound of it this is.

        The bytes are prepared as the run's own held-out ones are. A run on binarized images is of
        these: its bytes are 0 and 255.

        Args:
            images: Examples at rest, such as uint8 [N, H, W, C]; or a batch of a source, name ->
                [N, ...], such as `run.experiment.held_out[np.arange(8)]`, with its conditions.
            condition: Condition of all examples, or one of each; as `sample` takes it, but of
                attributes all must be given. Not with a batch, which has its own.
            seed: Seed of the noise, where the bound is drawn.

        Raises:
            ValueError: The family has no likelihood, examples are not of the data's shape or type,
                or there is not one condition or N.
            FloatingPointError: Values are not finite; says how many.
        """
        self._check("log_prob")
        bound = self.family.bound
        assert bound is not None
        given = examples_of(self.experiment, images, condition)
        nats = self._in_batches(self._log_prob, given, seed)
        evaluation.check_finite(np.isfinite(nats), "values of log_prob")
        bits = np.asarray(bits_per_dim(jnp.asarray(-nats), bound.num_dims))
        return LogProb(nats, bits if bound.eight_bit else None, bound)

    def encode(
        self,
        images: np.ndarray | Array | Mapping[str, Any],
        *,
        condition: Any = None,
        seed: int = 0,
    ) -> PyTree:
        """The latents of examples, a tree of arrays [N, ...].

        Args:
            images: Examples at rest, or a batch of a source; as `log_prob` takes them.
            condition: Condition of all examples, or one of each; as `log_prob` takes it.
            seed: Seed of the noise, where the encoder draws.

        Raises:
            ValueError: The family has no encoder, or an argument is refused as by `log_prob`.
            FloatingPointError: Latents are not finite; says how many.
        """
        self._check("encode")
        given = examples_of(self.experiment, images, condition)
        latents = self._in_batches(self._encode, given, seed)
        for leaf in jax.tree.leaves(latents):
            evaluation.check_finite(np.asarray(evaluation.finite(jnp.asarray(leaf))), "latents")
        return latents

    def draw_latents(self, num: int, *, seed: int = 0) -> PyTree:
        """Latents from the prior, a tree of arrays [num, ...].

        Args:
            num: Number of latents.
            seed: Seed of the latents.

        Raises:
            ValueError: The family has no prior of latents, or `num` is below 1.
        """
        self._check("draw_latents")
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}")
        latents = self.family.latents
        assert latents is not None
        assert latents.draw is not None
        return jax.tree.map(np.asarray, latents.draw(jax.random.key(seed), num))

    def decode(self, latents: PyTree, *, condition: Any = None, seed: int = 0) -> np.ndarray:
        """The examples that latents stand for, at rest: uint8 [N, H, W, C] of images.

        Args:
            latents: Latents as `encode` and `draw_latents` give them, arrays [N, ...].
            condition: Condition of all examples, or one of each; as `sample` takes it.
            seed: Seed of the noise, where the decoder draws.

        Raises:
            ValueError: The family has no decoder, latents are of another form than it takes, or
                there is not one condition or N.
            FloatingPointError: Examples are not finite; says how many.
        """
        self._check("decode")
        latents = latents_of(self.family, "latents", latents)
        num = len(jax.tree.leaves(latents)[0])
        given = {"latents": latents, "condition": conditions_of(self.family, condition, num)}
        x, kept = self._in_batches(self._decode, given, seed)
        evaluation.check_finite(kept, f"decoded {self.experiment.medium.unit}")
        return x

    def interpolate(
        self, start: PyTree, end: PyTree, steps: int = 8, *, condition: Any = None, seed: int = 0
    ) -> np.ndarray:
        """Examples on the way from latents to others, at rest: uint8 [N, steps, H, W, C] of images.

        Args:
            start: Latents to begin with, arrays [N, ...].
            end: Latents to end with, of the same shapes.
            steps: Number of examples on each way, both ends included; at least 2.
            condition: Condition of all ways, or one of each; as `sample` takes it.
            seed: Seed of the noise, where the decoder draws.

        Raises:
            ValueError: The family has no way between latents, latents are of different shapes or of
                another form than the decoder takes, `steps` is below 2, or there is not one
                condition or N.
            FloatingPointError: Examples are not finite; says how many.
        """
        self._check("interpolate")
        if steps < 2:
            raise ValueError(f"steps must be at least 2, the start and the end, got {steps}")
        start = latents_of(self.family, "start", start)
        end = latents_of(self.family, "end", end)
        if (first := jax.tree.map(np.shape, start)) != (last := jax.tree.map(np.shape, end)):
            raise ValueError(f"start and end must have the same shapes, got {first} and {last}")
        space = self.family.latents
        assert space is not None
        num = len(jax.tree.leaves(start)[0])
        start, end = jax.tree.map(jnp.asarray, (start, end))
        path = jax.tree.map(np.asarray, space.interpolate(start, end, steps))
        ways = jax.tree.map(lambda z: z.swapaxes(0, 1).reshape(-1, *z.shape[2:]), path)
        rows = conditions_of(self.family, condition, num)
        each = None if rows is None else rows.repeat(steps, axis=0)
        x = self.decode(ways, condition=each, seed=seed)
        return x.reshape(num, steps, *x.shape[1:])

    @property
    def metrics(self) -> Table:
        """The metrics of training by step, as they are written now."""
        return read_rows(self._directory / METRICS)

    @property
    def evaluations(self) -> Table:
        """The metrics on held-out examples that were measured while training."""
        return read_rows(self._directory / EVALUATIONS)

    @property
    def measurements(self) -> Table:
        """The distances of samples from real images that were measured while training."""
        return read_rows(self._directory / MEASUREMENTS)

    @property
    def samples(self) -> list[Path]:
        """The pictures of samples that training has written, the newest last."""
        return sorted(self._directory.glob("samples/*.png"))

    def __repr__(self) -> str:
        return f"Run({self.name}, {self.family.name}, step {self.step:,}, {self._directory})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._facts().items()
        )
        newest = next(filter(is_whole_png, reversed(self.samples)), None)
        if newest is None:
            return f"<table>{rows}</table>"
        data, name = base64.b64encode(newest.read_bytes()).decode(), html.escape(newest.name)
        image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
        return f"<table>{rows}</table><p>samples/{name}</p>{image}"

    def _facts(self) -> dict[str, str]:
        """What a notebook says of the run."""
        family = self.family
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(self.variables.params))
        facts = {
            "run": str(self._directory),
            "recipe": self.name,
            "model": f"{family.name}, {num_parameters:,} parameters",
            "parameters": "of the last step" if self.average is None else f"{self.average} average",
            **({"steps": f"{self.step:,} of {self.config.steps:,}"} if self.config.steps else {}),
            "data": self.experiment.pipeline.source.protocol,
        }
        if family.conditioning is not None:
            names = family.conditioning.names
            some = ", ".join([*names[:10], *(["…"] if len(names) > 10 else [])])
            facts["condition"] = family.conditioning.key + (f": {some}" if names else "")
        if family.bound is not None:
            facts["log_prob"] = family.bound.kind
        facts["methods"] = ", ".join(self.abilities)
        return facts

    @property
    def _directory(self) -> Path:
        return Path(self.config.run_dir)

    def _check(self, method: str) -> None:
        if method not in self.abilities:
            raise ValueError(
                f"{self.name} cannot {method}: its family, {self.family.name}, has "
                f"{', '.join(self.abilities) or 'none of the methods'}"
            )

    @cached_property
    def _sample(self) -> Callable[..., np.ndarray]:
        return evaluation.make_sample(self.experiment, self.strategy)

    @cached_property
    def _log_prob(self) -> Callable[..., PyTree]:
        return self._of_examples(self.family.log_prob)

    @cached_property
    def _encode(self) -> Callable[..., PyTree]:
        return self._of_examples(self.family.encode)

    def _of_examples(self, function: Callable[..., PyTree] | None) -> Callable[..., PyTree]:
        """A family's function of a batch, compiled, of examples at rest and their conditions."""
        assert function is not None

        def call(variables: Variables, given: Mapping[str, Any], key: Array) -> PyTree:
            key_prepare, key = jax.random.split(key)
            batch = dict(self.experiment.prepare(key_prepare, given["raw"], False))
            if given["condition"] is not None:
                assert self.family.conditioning is not None
                batch[self.family.conditioning.key] = given["condition"]
            return function(variables, batch, key)

        return jax.jit(call, compiler_options=self.strategy.options)

    @cached_property
    def _decode(self) -> Callable[..., tuple[Array, Array]]:
        decode = self.family.decode
        assert decode is not None

        def call(variables: Variables, given: Mapping[str, Any], key: Array) -> tuple[Array, Array]:
            x = decode(variables, given["latents"], key, condition=given["condition"])
            return self.experiment.medium.at_rest(x), evaluation.finite(x)

        return jax.jit(call, compiler_options=self.strategy.options)

    def _in_batches(self, call: Callable[..., PyTree], given: Mapping[str, Any], seed: int) -> Any:
        """What a compiled function gives of all examples; the last call's are repeated to fill."""
        num = len(jax.tree.leaves(given)[0])
        devices = self.strategy.num_devices
        size = -(-min(num, max(AT_ONCE, devices)) // devices) * devices
        parts = []
        for index, begin in enumerate(range(0, num, size)):
            rows = np.minimum(np.arange(begin, begin + size), num - 1)
            some = jax.tree.map(partial(self._placed, rows=rows), given)
            result = call(self.variables, some, jax.random.fold_in(jax.random.key(seed), index))
            parts.append(jax.tree.map(evaluation.to_host, result))
        return jax.tree.map(lambda *x: np.concatenate(x)[:num], *parts)

    def _placed(self, x: np.ndarray, rows: np.ndarray) -> Array:
        return self.strategy.put_global({"rows": x[rows]})["rows"]
