"""How fast the recipes train and sample, on one device and on several."""

import statistics
import time
from typing import Any

import jax
import numpy as np

from jaxgen.training import evaluation, pictures
from jaxgen.training.strategies import MOST_STEPS
from jaxgen.training.tally import Tally

from ..flops import count_flops
from ..harness import timed
from .programs import build, make_data, prepare

REPEATS = 5
TURN = 1.0  # seconds
DDIM_STEPS = 50


def training_speed(
    name: str, precision: str, shrunk: bool, *, num_devices: int = 1
) -> dict[str, Any]:
    """Steps and images a second, compile time, memory and operations of a recipe's training.

    Args:
        name: Name of the recipe.
        precision: Type of the network's arithmetic.
        shrunk: Whether to take the sizes for a CPU.
        num_devices: Number of devices; the batch grows with it.
    """
    with make_data(name) as data:
        config, experiment = build(
            name, {"precision": precision}, shrunk=shrunk, data=data, num_devices=num_devices
        )
        training = prepare(config, experiment, jax.devices()[:num_devices])
    begin = time.perf_counter()
    lowered = training.run.lower(training.state, *training.arguments, np.int32(1))
    lowered_at = time.perf_counter()
    run = lowered.compile()
    compiled_at = time.perf_counter()
    flops = count_flops(training.run, training.state, *training.arguments, np.int32(1))
    seconds, loss = _time_steps(run, training.state, training.arguments)
    return {
        "recipe": name,
        "precision": precision,
        "shrunk": shrunk,
        "devices": num_devices,
        "batch_size": config.batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves(training.state.params)),
        "seconds_per_step": seconds,
        "examples_per_second": config.batch_size / seconds,
        "flops_per_step": flops,
        "trace_seconds": lowered_at - begin,
        "compile_seconds": compiled_at - lowered_at,
        "memory": _memory(run),
        "metrics": loss,
    }


def _time_steps(run: Any, state: Any, arguments: Any) -> tuple[float, dict[str, float]]:
    """The median seconds of a step, and the means of the last dispatch's metrics."""

    def dispatch(state: Any, count: int) -> tuple[Any, Any, float]:
        begin = time.perf_counter()
        state, report = jax.block_until_ready(run(state, *arguments, np.int32(count)))
        return state, report, time.perf_counter() - begin

    state = jax.tree.map(lambda x: x.copy(), state)  # the loop takes it over
    state, _, _ = dispatch(state, 1)
    state, report, once = dispatch(state, 2)
    count = max(1, min(MOST_STEPS, round(TURN / (once / 2))))
    times = []
    for _ in range(REPEATS):
        state, report, seconds = dispatch(state, count)
        times.append(seconds / count)
    tally = Tally()
    added = tally.add(jax.device_get(report), 0, count)
    return statistics.median(times), {**tally.means(), "skipped": added.skipped}


def _memory(compiled: Any) -> dict[str, int] | None:
    """Bytes that the program needs at its peak on a device, as the compiler planned them."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
        "donated": plan.alias_size_in_bytes,
        "results": plan.output_size_in_bytes,
    }
    total = parts["arguments"] + parts["temporaries"] + parts["results"] - parts["donated"]
    return {**parts, "total": total}


def sampling_speed(name: str, precision: str, shrunk: bool, *, num: int = 64) -> dict[str, Any]:
    """The time of a batch of samples, with parameters as they are initialized.

    Diffusion draws by 50 steps of DDIM, each one evaluation of the network.

    Args:
        name: Name of the recipe.
        precision: Type of the network's arithmetic.
        shrunk: Whether to take the sizes for a CPU.
        num: Number of samples in a batch.
    """
    changes: dict[str, Any] = {"precision": precision}
    if name.startswith("ddpm"):
        changes |= {"sampler.name": "ddim", "sampler.num_steps": DDIM_STEPS}
    num = min(num, 4) if shrunk else num
    with make_data(name) as data:
        config, experiment = build(name, changes, shrunk=shrunk, data=data)
        training = prepare(config, experiment, jax.devices()[:1])
    draw = evaluation.sample_program(experiment, training.strategy)
    variables = evaluation.variables_of(training.state, experiment.averages, training.arguments[0])
    condition = pictures.in_turn(experiment.family, num)
    begin = time.perf_counter()
    samples = np.asarray(draw(variables, jax.random.key(0), num, condition)[0])
    first = time.perf_counter() - begin
    seconds = timed(lambda: draw(variables, jax.random.key(1), num, condition), repeats=3)
    return {
        "recipe": name,
        "precision": precision,
        "shrunk": shrunk,
        "samples": num,
        "shape": list(samples.shape[1:]),
        "seconds": seconds,
        "samples_per_second": num / seconds,
        "seconds_per_evaluation": seconds / DDIM_STEPS if name.startswith("ddpm") else None,
        "first_call": first,
    }


def scaling(name: str, precision: str, shrunk: bool) -> dict[str, Any]:
    """Training on 1, 2, 4, ... devices with the same batch on each.

    Args:
        name: Name of the recipe.
        precision: Type of the network's arithmetic.
        shrunk: Whether to take the sizes for a CPU.
    """
    counts = [2**i for i in range(jax.device_count().bit_length()) if 2**i <= jax.device_count()]
    rows = [training_speed(name, precision, shrunk, num_devices=count) for count in counts]
    one = rows[0]["examples_per_second"]
    for row in rows:
        row["efficiency"] = row["examples_per_second"] / (row["devices"] * one)
    return {"recipe": name, "rows": rows}
