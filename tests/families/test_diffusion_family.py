"""The diffusion family keeps the contract: shapes, purity, one trace, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick_jit

from jaxgen import schedules
from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_model_space
from jaxgen.families.diffusion import ddpm
from jaxgen.models.unet import UNet
from jaxgen.sampling.diffusion import ddim
from jaxgen.training.step import init_state, make_step

SCHEDULE = schedules.discrete_schedule(schedules.cosine_betas(20))
SHAPE = (8, 8, 1)


def make(variance="large", num_classes=None, label_dropout=0.0, **options):
    model = UNet(
        channels=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        dropout=0.1,
        out_channels=2 if variance == "learned_range" else 1,
        num_classes=num_classes,
    )
    return ddpm(
        model,
        SCHEDULE,
        optax.adam(3e-3),
        image_shape=SHAPE,
        variance=variance,
        null_label=num_classes,
        label_dropout=label_dropout,
        **options,
    )


@pytest.fixture(scope="module")
def batch():
    raw = digits("train")[np.arange(16)]
    return {"image": to_model_space(jnp.asarray(raw["image"])), "label": jnp.asarray(raw["label"])}


@pytest.fixture(scope="module", params=["plain", "learned variance, with classes"])
def family(request):
    if request.param == "plain":
        return make()
    return make("learned_range", num_classes=10, label_dropout=0.2)


@pytest.fixture(scope="module")
def state(family, batch):
    return quick_jit(lambda: init_state(family, jax.random.key(0), batch))()


def test_contract(family, state, batch):
    (phase,) = family.phases
    loss = quick_jit(lambda p, key: phase.loss(p, {}, batch, key, train=True))
    (values, aux), (again, _) = (
        loss(state.params, jax.random.key(1)),
        loss(state.params, jax.random.key(1)),
    )
    assert values.shape == (16,)
    assert values.dtype == jnp.float32
    assert aux.model_state == {}
    np.testing.assert_array_equal(values, again)  # pure
    assert not np.array_equal(values, loss(state.params, jax.random.key(2))[0])

    evaluate = quick_jit(lambda p, key: family.evaluate(p, {}, batch, key, train=False))
    nats, aux = evaluate(state.params, jax.random.key(1))
    np.testing.assert_allclose(aux.metrics["bits_per_dim"], nats / (64 * np.log(2)), rtol=1e-5)
    terms = sum(aux.metrics[k] for k in ("prior_kl", "diffusion_kl", "decoder_nll"))
    np.testing.assert_allclose(terms, nats, rtol=1e-5)
    log_prob = quick_jit(lambda p, key: family.log_prob(p, {}, batch, key))
    np.testing.assert_allclose(log_prob(state.params, jax.random.key(1)), -nats, rtol=1e-5)


def test_it_learns_real_digits(family, state, batch):
    step, losses = quick_jit(make_step(family)), []
    for t in range(60):
        state, metrics, bad = step(state, batch, jax.random.fold_in(jax.random.key(3), t))
        assert int(bad) == -1
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert step._cache_size() == 1


def test_samples(family, state):
    condition = jnp.arange(4) if "label" in state.params["denoiser"] else None
    draw = quick_jit(lambda p, k: family.sample(p, {}, k, 4, condition=condition))
    samples = draw(state.params, jax.random.key(4))
    assert samples.shape == (4, *SHAPE)
    assert np.isfinite(samples).all()
    with pytest.raises(ValueError, match="condition must be given"):
        family.sample(
            state.params, {}, jax.random.key(4), 4, condition=None if condition is not None else 1
        )


def test_a_sampler_of_ones_own(batch):
    def sampler(denoise, schedule, key, shape, *, condition, null_condition):
        return ddim(
            denoise,
            schedule,
            key,
            shape,
            num_steps=3,
            condition=condition,
            null_condition=null_condition,
            guidance_scale=2.0,
        )

    family = make(num_classes=10, sampler=sampler)
    condition = jnp.array([1, 2])
    shapes = jax.eval_shape(
        lambda key: family.sample(family.init(key, batch)[0], {}, key, 2, condition=condition),
        jax.random.key(0),
    )
    assert shapes.shape == (2, *SHAPE)


def test_label_dropout_only_in_training(batch):
    """With all labels dropped but one in a million, training cannot tell the labels apart."""
    family = make(num_classes=10, label_dropout=1 - 1e-6)
    shapes = jax.eval_shape(family.init, jax.random.key(0), batch)[0]
    params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
    params["denoiser"]["label"] = jax.tree.map(
        lambda s: jnp.arange(s.size, dtype=s.dtype).reshape(s.shape) / s.size,
        shapes["denoiser"]["label"],
    )
    other = {**batch, "label": (batch["label"] + 1) % 10}
    (phase,) = family.phases
    loss = quick_jit(
        lambda x, train: phase.loss(params, {}, x, jax.random.key(1), train=train)[0],
        static_argnums=1,
    )
    a, b = ([loss(x, train) for train in (True, False)] for x in (batch, other))
    np.testing.assert_array_equal(a[0], b[0])
    assert not np.array_equal(a[1], b[1])


def test_bad_arguments(batch):
    with pytest.raises(ValueError, match=r"label_dropout must lie in \[0, 1\), got 1.0"):
        make(num_classes=10, label_dropout=1.0)
    with pytest.raises(ValueError, match="label_dropout needs a null_label"):
        make(label_dropout=0.5)
    with pytest.raises(ValueError, match="image_shape must be"):
        ddpm(UNet(), SCHEDULE, optax.adam(1e-3), image_shape=(8, 0, 1))
    family = make()
    wrong = {"image": jnp.zeros((2, 16, 16, 1))}
    with pytest.raises(ValueError, match=r"image_shape is \(8, 8, 1\), but the data has"):
        family.init(jax.random.key(0), wrong)
