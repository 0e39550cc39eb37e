"""The step: reduction, accumulation, phases, averages and the guard."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from jaxgen.core import Optimizer
from jaxgen.training.averages import Average, constant
from jaxgen.training.guard import guarded_names
from jaxgen.training.optim import adam
from jaxgen.training.packing import Packed, elementwise
from jaxgen.training.step import init_state, make_step, max_repeats

close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def mean(metrics, name):
    total, weight = metrics[name]
    return float(total) / float(weight)


def test_one_step_of_sgd_by_hand(key):
    family = toys.regression(optax.sgd(0.5))
    batch = toys.batch(key)
    state = init_state(family, key, batch)
    result = make_step(family)(state, {}, batch, key)
    w, b = state.params["net"]["w"], state.params["net"]["b"]
    error = batch["x"] @ w + b - batch["y"]
    gradient = 2 * jnp.mean(error[:, None] * batch["x"], axis=0)
    close(result.state.params["net"]["w"], w - 0.5 * gradient)
    close(mean(result.metrics, "loss"), float(jnp.mean(error**2)))
    close(mean(result.metrics, "error"), float(jnp.mean(error)))
    norm = jnp.sqrt(jnp.sum(gradient**2) + (2 * jnp.mean(error)) ** 2)
    close(mean(result.metrics, "grad_norm"), float(norm))
    assert int(result.state.step) == 1
    assert int(result.bad) == -1


def test_a_weight_equals_slicing(key):
    family = toys.regression()
    whole = toys.batch(key, 16, weight=[1] * 5 + [0] * 11)
    part = {k: v[:5] for k, v in whole.items() if k != "weight"}
    # What weighs nothing does not matter.
    whole["y"] = whole["y"].at[7].set(1e6)
    state = init_state(family, key, part)
    step = make_step(family)
    weighted, sliced = step(state, {}, whole, key), step(state, {}, part, key)
    close(weighted.state, sliced.state)
    close(mean(weighted.metrics, "loss"), mean(sliced.metrics, "loss"))
    assert float(weighted.metrics["loss"][1]) == 5


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulation_is_the_gradient_of_the_whole_batch(key, weighted):
    family = toys.regression()
    batch = toys.batch(key, 16, weight=[1, 0, 0, 1] + [1] * 9 + [0] * 3 if weighted else None)
    state = init_state(family, key, batch)
    at_once = make_step(family)(state, {}, batch, key)
    in_parts = make_step(family, accumulate=4)(state, {}, batch, key)
    close(in_parts.state, at_once.state)
    close(in_parts.metrics, at_once.metrics)


def test_accumulation_draws_new_noise_in_each_part(key):
    family = toys.regression(noise=1.0)
    one = toys.batch(key, 1)
    batch = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), one)
    state = init_state(family, key, batch)
    result = make_step(family, accumulate=4)(state, {}, batch, key)
    single = make_step(family)(state, {}, one, jax.random.fold_in(jax.random.fold_in(key, 0), 0))
    assert mean(result.metrics, "loss") != pytest.approx(mean(single.metrics, "loss"))


def test_phases_take_turns_and_slices(key):
    family = toys.adversarial(repeats=2)
    batch = {"x": jnp.broadcast_to(jnp.arange(4.0)[:, None], (4, toys.WIDTH))}
    state = init_state(family, key, batch)
    result = make_step(family)(state, {}, batch, key)
    # Slices are interleaved: examples 0, 2 (mean 1) then 1, 3 (mean 2); each moves half the way.
    critic = 0.5 * 1.0
    critic = critic + 0.5 * (2.0 - critic)
    assert float(result.state.params["critic"]) == pytest.approx(critic)
    # The generator sees the critic as updated.
    assert float(result.state.params["generator"]) == pytest.approx(1.0 - 0.2 * (1.0 - critic))
    assert set(result.metrics) == {
        "critic/loss",
        "critic/grad_norm",
        "generator/loss",
        "generator/grad_norm",
    }
    assert float(result.metrics["critic/loss"][1]) == 4  # both slices
    assert max_repeats(family) == 2


@pytest.mark.parametrize("x", [(np.nan, 1.0, 2.0, 3.0), (1.0, np.nan, 3.0, 2.0)])
def test_of_repeated_updates_only_the_bad_one_is_skipped(key, x):
    """One slice, every other example, is not finite; the other, of mean 2, moves half the way."""
    family = toys.adversarial(repeats=2)
    batch = {"x": jnp.broadcast_to(jnp.array(x)[:, None], (4, toys.WIDTH))}
    state = init_state(family, key, batch)
    result = make_step(family)(state, {}, batch, key)
    assert float(result.state.params["critic"]) == 1.0
    assert guarded_names(family, state.params)[int(result.bad)] == "the loss of phase 'critic'"
    assert float(result.metrics["critic/loss"][1]) == 2


@pytest.mark.parametrize(
    ("where", "name"),
    [("y", "the loss of phase 'regression'"), ("gradient", "the gradient of net/w in phase")],
)
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(key, where, name):
    family = toys.regression(state=True)
    batch = toys.batch(key)
    state = init_state(family, key, batch)
    step = jax.jit(make_step(family))
    if where == "y":
        bad = {**batch, "y": batch["y"].at[3].set(jnp.inf)}
    else:  # a finite loss; the square of w's gradient overflows
        bad = {**batch, "x": batch["x"] * 1e20}
        state = state._replace(params={"net": {**state.params["net"], "w": jnp.full((8,), 1e-4)}})
    result = step(state, {}, bad, key)
    assert guarded_names(family, state.params)[int(result.bad)].startswith(name)
    chex.assert_trees_all_equal(result.state._replace(step=state.step), state)
    assert int(result.state.step) == 1
    assert all(float(weight) == 0 for _, weight in result.metrics.values())
    good = step(result.state, {}, batch, key)
    assert int(good.bad) == -1
    assert float(jnp.max(jnp.abs(good.state.params["net"]["w"] - state.params["net"]["w"]))) > 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("nan", ["b1", "b2"])
def test_an_update_that_is_not_finite_changes_nothing(key, nan, packed):
    """The gradient is finite, what the optimizer makes of it is not."""
    transform = optax.adam(1e-2, **{nan: jnp.nan})
    family = toys.regression(elementwise(transform) if packed else transform, state=True)
    batch, averages = toys.batch(key), {"ema": constant(0.5)}
    state = init_state(family, key, batch, averages=averages)
    step = make_step(family, averages=averages)
    assert isinstance(step.pack(state).params["net"], Packed) == packed
    result = jax.jit(step)(state, {}, batch, key)
    name = guarded_names(family, state.params, averages)[int(result.bad)]
    assert name == "the updated net/b in phase 'regression'"
    chex.assert_trees_all_equal(result.state._replace(step=state.step), state)
    assert float(result.metrics["loss"][1]) == 0


def test_a_state_that_is_not_finite_changes_nothing(key):
    """Statistics can overflow where loss and gradient do not."""
    family, batch = toys.regression(state=True), toys.batch(key)
    plain = family.phases[0].loss

    def loss(variables, batch, key, step):
        value, aux = plain(variables, batch, key, step)
        return value, aux._replace(state={"mean": aux.state["mean"].at[2].set(jnp.inf)})

    family = family._replace(phases=(family.phases[0]._replace(loss=loss),))
    state = init_state(family, key, batch)
    result = make_step(family)(state, {}, batch, key)
    names = guarded_names(family, state.params)
    assert names[int(result.bad)] == "the state of phase 'regression'"
    chex.assert_trees_all_equal(result.state._replace(step=state.step), state)


def test_an_average_that_is_not_finite_is_not_kept(key):
    family, batch = toys.regression(), toys.batch(key)
    averages = {"good": constant(0.5), "late": Average(lambda step: jnp.float32(jnp.nan))}
    state = init_state(family, key, batch, averages=averages)
    result = make_step(family, averages=averages)(state, {}, batch, key)
    names = guarded_names(family, state.params, averages)
    assert names[int(result.bad)] == "the average 'late'"
    chex.assert_trees_all_equal(result.state.averages, state.averages)


def test_gradients_of_the_loss_reach_nothing_else(key):
    family = toys.adversarial(repeats=1)
    batch = {"x": jnp.full((4, toys.WIDTH), 3.0)}
    state = init_state(family, key, batch)
    only_critic = family._replace(phases=family.phases[:1])
    state = init_state(only_critic, key, batch)
    result = make_step(only_critic)(state, {}, batch, key)
    assert float(result.state.params["generator"]) == float(state.params["generator"])


def test_clipping_and_warm_up():
    optimizer = adam(1e-3, warmup_steps=10, clip_norm=1.0)
    params = {"w": jnp.zeros((4,))}
    updates, _ = optimizer.update({"w": jnp.full((4,), 1e6)}, optimizer.init(params), params)
    close(updates["w"], jnp.zeros((4,)))  # the first rate is zero


@pytest.mark.parametrize("packed", [False, True])
def test_an_update_of_too_large_a_gradient_is_left_out(key, packed):
    """From `skip_norm` on nothing changes but the count; below it nothing is as if there were none.
    What the step measured is told all the same."""
    rule = optax.adam(0.1)
    rule = elementwise(rule) if packed else rule
    family, batch = toys.regression(rule, state=True), toys.batch(key)
    kept = {"ema": constant(0.5)}
    state = init_state(family, key, batch, averages=kept)
    ahead = jax.tree.map(lambda x: x + 1.0, state.averages)  # which would follow the parameters
    state = state._replace(averages=ahead)
    plain = make_step(family, averages=kept)(state, {}, batch, key)
    norm = mean(plain.metrics, "grad_norm")

    def step(skip_norm):
        optimizer = family.optimizers["regression"]._replace(skip_norm=skip_norm)
        limited = family._replace(optimizers={"regression": optimizer})
        return make_step(limited, averages=kept)(state, {}, batch, key)

    left_out, taken = step(0.999 * norm), step(1.001 * norm)
    chex.assert_trees_all_equal(left_out.state._replace(step=0), state._replace(step=0))
    assert int(left_out.state.step) == 1
    close(taken.state, plain.state)
    for result, skipped in ((left_out, 1), (taken, 0)):
        assert int(result.bad) == -1
        assert mean(result.metrics, "left_out") == skipped
        close(mean(result.metrics, "grad_norm"), norm)
        close(mean(result.metrics, "loss"), mean(plain.metrics, "loss"))
    assert "left_out" not in plain.metrics


def test_what_is_not_finite_is_not_counted_as_skipped(key):
    family, batch = toys.regression(), toys.batch(key)
    optimizer = family.optimizers["regression"]._replace(skip_norm=1e9)
    family = family._replace(optimizers={"regression": optimizer})
    state = init_state(family, key, batch)
    result = make_step(family)(state, {}, {**batch, "y": batch["y"] * np.nan}, key)
    assert int(result.bad) == 0
    assert float(result.metrics["left_out"][1]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: make_step(f, accumulate=0), "accumulate must be at least 1, got 0"),
        (
            lambda f: make_step(
                f._replace(optimizers={"regression": Optimizer(("net",), optax.sgd(1.0), 0.0)})
            ),
            "optimizer 'regression': skip_norm must be positive or None, got 0.0",
        ),
        (lambda f: make_step(f._replace(phases=())), "at least one phase"),
        (
            lambda f: make_step(f._replace(phases=(f.phases[0]._replace(repeats=0),))),
            "repeats must be >= 1, got 0",
        ),
        (
            lambda f: make_step(f._replace(phases=(f.phases[0]._replace(every=0),))),
            "every must be >= 1, got 0",
        ),
        (
            lambda f: make_step(f._replace(phases=(f.phases[0]._replace(start=-1),))),
            "start must be >= 0, got -1",
        ),
        (
            lambda f: make_step(f._replace(phases=f.phases * 2)),
            r"must have different names, got \['regression', 'regression'\]",
        ),
        (
            lambda f: make_step(f._replace(optimizers={})),
            r"phase 'regression': optimizer must be one of \[\], got 'regression'",
        ),
        (lambda f: adam(0.0), "learning_rate must be positive"),
        (lambda f: adam(1e-3, warmup_steps=-1), "warmup_steps must be at least 0"),
        (lambda f: adam(1e-3, clip_norm=0.0), "clip_norm must be positive"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(toys.regression())


def test_bad_names_and_sizes(key):
    family, batch = toys.regression(), toys.batch(key)
    with pytest.raises(ValueError, match=r"average 'ema' is of \['net2'\], but the parameters are"):
        init_state(family, key, batch, averages={"ema": constant(0.9, of=("net2",))})
    wrong = family._replace(optimizers={"regression": Optimizer(("nett",), optax.sgd(0.1))})
    with pytest.raises(ValueError, match=r"optimizer 'regression' trains \['nett'\]"):
        init_state(wrong, key, batch)
    state = init_state(family, key, batch)
    with pytest.raises(ValueError, match="a batch of 16 cannot be cut into 3"):
        make_step(family, accumulate=3)(state, {}, batch, key)
