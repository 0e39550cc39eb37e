"""The diffusion family keeps the contract: shapes, purity, one trace, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight, runner
from few_steps import train
from flax import linen as nn

from jaxgen.conditioning.base import Condition, vector_conditioning
from jaxgen.conditioning.labels import labels
from jaxgen.core import Aux, Variables
from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_model_space
from jaxgen.families.diffusion import HISTORY, Sampler, diffusion
from jaxgen.losses.diffusion import denoising_loss, min_snr, variational_bound
from jaxgen.models.unet import UNet
from jaxgen.noise.chain import (
    chain,
    cosine_betas,
    large_variance,
    levels_of,
    linear_betas,
    small_variance,
    zero_terminal_snr,
)
from jaxgen.noise.importance import LossHistory, LossResampler
from jaxgen.noise.parametrization import EPS, V, denoiser
from jaxgen.noise.process import q_sample
from jaxgen.noise.spacing import leading, linspace, trailing
from jaxgen.sampling.guidance import clip_x0, guided
from jaxgen.sampling.solvers import ancestral, ddim, solve
from jaxgen.training.strategies import make_strategy

CHAIN = chain(cosine_betas(20))
SHAPE = (8, 8, 1)
LABELS = labels(10)
NUM = jnp.int32(0)  # the step of a loss


def make(learns_variance=False, **options):
    network = UNet(
        channels=8,
        multipliers=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        dropout=0.1,
        out_channels=2 if learns_variance else 1,
    )
    return diffusion(
        network,
        CHAIN,
        optax.adam(3e-3),
        image_shape=SHAPE,
        learns_variance=learns_variance,
        **options,
    )


@pytest.fixture(scope="module")
def batch():
    raw = digits("train")[np.arange(16)]
    return {"image": to_model_space(jnp.asarray(raw["image"])), "label": jnp.asarray(raw["label"])}


@pytest.fixture(
    scope="module",
    params=[pytest.param("plain", marks=pytest.mark.slow), "learned variance, with classes"],
)
def family(request):
    if request.param == "plain":
        return make()
    return make(learns_variance=True, conditioning=LABELS, condition_dropout=0.2)


@pytest.fixture(scope="module")
def fitted(family, batch):
    """(variables at the start, variables at the end, metrics)."""
    return train(family, batch, 60)


@pytest.fixture(scope="module")
def loss(family, batch):
    (phase,) = family.phases
    return jax.jit(lambda v, key: phase.loss(v, batch, key, NUM))


def test_contract(family, fitted, batch, loss):
    variables, _, _ = fitted
    (phase,) = family.phases
    assert (phase.name, phase.optimizer) == ("denoise", "denoise")
    assert family.optimizers["denoise"].trains == ("denoiser",)
    assert variables.params.keys() == {"denoiser"}
    assert variables.state == variables.fixed == {}
    (values, aux), (again, _) = (loss(variables, jax.random.key(1)) for _ in range(2))
    assert values.shape == (16,)
    assert values.dtype == jnp.float32
    assert aux == Aux({}, None)
    np.testing.assert_array_equal(values, again)  # pure
    assert not np.array_equal(values, loss(variables, jax.random.key(2))[0])

    both = jax.jit(lambda v, key: (family.evaluate(v, batch, key), family.log_prob(v, batch, key)))
    (nats, metrics), log_prob = both(variables, jax.random.key(1))
    np.testing.assert_allclose(metrics["bits_per_dim"], nats / (64 * np.log(2)), rtol=1e-5)
    terms = sum(metrics[k] for k in ("prior_kl", "diffusion_kl", "decoder_nll"))
    np.testing.assert_allclose(terms, nats, rtol=1e-5)
    np.testing.assert_allclose(log_prob, -nats, rtol=1e-5)
    assert family.sampling.passes == 20


def test_it_learns_real_digits(fitted, loss):
    """In one trace, which `train` watches over."""
    keys = jax.random.split(jax.random.key(3), 8)
    start, end = (np.mean([loss(v, key)[0] for key in keys]) for v in fitted[:2])
    assert end < 0.7 * start


def test_samples(family, fitted):
    _, variables, _ = fitted
    condition = None if family.conditioning is None else jnp.arange(4)
    draw = jax.jit(lambda v, k: family.sample(v, k, 4, condition=condition))
    samples = draw(variables, jax.random.key(4))
    assert samples.shape == (4, *SHAPE)
    assert np.isfinite(samples).all()
    other = None if condition is not None else jnp.arange(4)
    with pytest.raises(ValueError, match="condition must be"):
        family.sample(variables, jax.random.key(4), 4, condition=other)


class Linear(nn.Module):
    """A network without parameters."""

    @nn.compact
    def __call__(self, x, t, condition, *, train):
        shift = 0.0 if condition is None else condition.vector.sum(axis=-1).reshape(-1, 1, 1, 1)
        return 0.3 * x + 0.01 * t.reshape(-1, 1, 1, 1) + 0.2 * shift


NOTHING = Variables({"denoiser": {}})
LINEAR_CHAIN = chain(linear_betas(20, 5e-3, 0.4))


def linear(**options):
    return diffusion(Linear(), LINEAR_CHAIN, optax.sgd(0.1), image_shape=SHAPE, **options)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(),
        Sampler(ancestral(small_variance), 5, linspace, clip=False),
        Sampler(ddim(0.5), 5, leading),
    ],
    ids=["default", "small", "ddim"],
)
def test_a_sampler_is_a_value_free_to_change(key, sampler):
    """Bound to the family or given to `sample`, it is the solver that it names."""

    @jax.jit
    def draw(key):
        family = linear(sampler=sampler, parametrization=V)
        given = linear(parametrization=V).sample(NOTHING, key, 3, sampler=sampler)
        key_start, key_steps = jax.random.split(key)
        denoise = denoiser(lambda x, t, c: 0.3 * x + 0.01 * t.reshape(-1, 1, 1, 1), V)
        want = solve(
            clip_x0(denoise) if sampler.clip else denoise,
            levels_of(LINEAR_CHAIN, sampler.num_steps, sampler.spacing),
            sampler.solver,
            key_steps,
            jax.random.normal(key_start, (3, *SHAPE)),
        )
        return family.sample(NOTHING, key, 3), given, want

    bound, given, want = draw(key)
    np.testing.assert_allclose(bound, want, atol=1e-5)
    np.testing.assert_allclose(given, want, atol=1e-5)


def test_a_chain_that_ends_in_noise_alone(key, batch):
    """Of v the data follow at its last level too; of eps they do not, and it is refused."""
    options = {"optimizer": optax.sgd(0.1), "image_shape": SHAPE}
    ended = chain(zero_terminal_snr(linear_betas(20, 5e-3, 0.4)))
    with pytest.raises(ValueError, match="ends in noise alone .* needs parametrization V or X0"):
        diffusion(Linear(), ended, **options)
    family = diffusion(Linear(), ended, parametrization=V, weighting=min_snr(5.0), **options)

    @jax.jit
    def run(key):
        return [
            family.sample(NOTHING, key, 3),
            family.sample(NOTHING, key, 3, sampler=Sampler(ddim(0.5), 5)),
            family.phases[0].loss(NOTHING, batch, key, NUM)[0],
            family.log_prob(NOTHING, batch, key),
        ]

    assert all(np.isfinite(values).all() for values in run(key))


def test_guidance_is_of_the_null_condition(key):
    condition, sampler = jnp.array([1, 2]), Sampler(ddim(), 4, trailing, guidance_scale=3.0)

    @jax.jit
    def draw(key):
        family = linear(conditioning=LABELS, sampler=sampler)
        key_start, key_steps = jax.random.split(key)
        denoise = denoiser(lambda x, t, c: Linear().apply({}, x, t, c, train=False), EPS)
        want = solve(
            clip_x0(guided(denoise, Condition(jnp.zeros((2, 10))), 3.0)),
            levels_of(LINEAR_CHAIN, 4, trailing),
            ddim(),
            key_steps,
            jax.random.normal(key_start, (2, *SHAPE)),
            condition=Condition(jax.nn.one_hot(condition, 10)),
        )
        plain = family.sample(NOTHING, key, 2, condition=condition, sampler=Sampler(ddim(), 4))
        return family.sample(NOTHING, key, 2, condition=condition), want, plain

    guided_samples, want, plain = draw(key)
    np.testing.assert_allclose(guided_samples, want, atol=1e-5)
    assert not np.allclose(guided_samples, plain, atol=1e-3)


def test_the_loss_is_of_the_parametrization_and_the_weighting(key, batch):
    """The draws of a loss, by hand: t, eps, the dropped condition, the network's dropout."""
    family = linear(parametrization=V, weighting=min_snr(2.0))
    got, _ = family.phases[0].loss(NOTHING, batch, key, NUM)
    key_t, key_eps, _, _ = jax.random.split(key, 4)
    x0 = batch["image"]
    level = LINEAR_CHAIN.at(jax.random.randint(key_t, (16,), 0, 20))
    eps = jax.random.normal(key_eps, x0.shape)
    output = 0.3 * q_sample(x0, eps, level) + 0.01 * level.time.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        got, denoising_loss(output, x0, eps, level, V, min_snr(2.0)), rtol=1e-5
    )


def test_the_bounds_variance_is_of_the_model(key, batch):
    """A learned one where there is one; else an argument, whatever the sampler has."""
    bounds = [
        linear(sampler=Sampler(ancestral(variance)), **options).evaluate(NOTHING, batch, key)[0]
        for variance, options in [
            (None, {}),
            (small_variance, {}),
            (small_variance, {"bound_variance": small_variance}),
            (None, {"bound_variance": large_variance}),
        ]
    ]
    np.testing.assert_array_equal(bounds[0], bounds[1])
    np.testing.assert_array_equal(bounds[0], bounds[3])
    assert (bounds[0] != bounds[2]).all()


@pytest.mark.parametrize("resampler", [None, LossResampler(2, 0.2)], ids=["uniform", "importance"])
def test_the_bound_is_trained_by_its_terms(batch, resampler):
    """Without a bias, however the timesteps are drawn: with the prior's part it is the bound."""
    family = linear(trains_bound=True, resampler=resampler, bound_variance=small_variance)
    squares = jnp.linspace(0.1, 9.0, 20)[:, None] * jnp.ones((1, 2))
    history = LossHistory(squares, jnp.full(20, 2.0))
    variables = NOTHING._replace(state={} if resampler is None else {HISTORY: history})

    @jax.jit
    def means(keys):
        drawn = jax.lax.map(lambda key: family.phases[0].loss(variables, batch, key, NUM)[0], keys)
        denoise = denoiser(lambda x, t, c: Linear().apply({}, x, t, c, train=False), EPS)
        nats, terms = variational_bound(
            denoise, LINEAR_CHAIN, batch["image"], keys[0], variance=small_variance
        )
        return drawn.mean(), (nats - terms["prior_kl"]).mean()

    got, want = means(jax.random.split(jax.random.key(0), 600))
    assert got == pytest.approx(float(want), rel=0.05)


class Dense(nn.Module):
    """A network of one layer, with a learned variance."""

    @nn.compact
    def __call__(self, x, t, condition, *, train):
        h = nn.Dense(2 * x[0].size)(x.reshape(len(x), -1)).reshape(*x.shape[:-1], -1)
        return h + 0.01 * t.reshape(-1, 1, 1, 1)


def importance_family():
    return diffusion(
        Dense(),
        LINEAR_CHAIN,
        optax.sgd(1e-3),
        image_shape=SHAPE,
        learns_variance=True,
        resampler=LossResampler(2),
    )


def test_the_losses_are_remembered(batch):
    family, key = importance_family(), jax.random.key(2)
    variables = family.init(key, batch)
    loss, aux = jax.jit(family.phases[0].loss)(variables, batch, key, NUM)
    before, after = variables.state[HISTORY], aux.state[HISTORY]
    assert not before.counts.any()
    assert after.counts.sum() == 16
    t = jax.random.choice(jax.random.split(key, 4)[0], 20, (16,), p=jnp.full(20, 0.05))
    for step in range(20):
        mine = np.asarray(loss)[np.asarray(t) == step][-2:]  # uniform at first: weights of 1
        kept = np.sort(after.squares[step])[::-1][: len(mine)]
        np.testing.assert_allclose(kept, np.sort(np.square(mine))[::-1], rtol=1e-4)


@pytest.mark.slow
def test_one_history_on_any_number_of_devices(batch):
    equal_on_one_and_eight(importance_family(), batch)


def test_one_history_where_each_device_has_its_own_examples(batch):
    """Under pmap it is the devices' mean, so that all of them draw by the same shares."""
    _, run = runner(importance_family(), batch, make_strategy("pmap", jax.devices()))
    first, _ = runner(importance_family(), batch, make_strategy("jit", jax.devices()[:1]))
    history = run(first, 3).state[HISTORY]
    assert history.counts.sum() == pytest.approx(3 * 16 / 8)
    assert np.isfinite(history.squares).all()
    assert history.squares.any()


def test_condition_dropout_only_in_training(batch):
    """With all labels dropped but one in a million, training cannot tell the labels apart."""
    family = make(conditioning=LABELS, condition_dropout=1 - 1e-6)
    shapes = jax.eval_shape(family.init, jax.random.key(0), batch).params
    params = jax.tree.map(lambda s: np.full(s.shape, 0.1, np.float32), shapes)
    params["denoiser"]["condition"] = jax.tree.map(
        lambda s: np.arange(s.size, dtype=s.dtype).reshape(s.shape) / np.float32(s.size),
        shapes["denoiser"]["condition"],
    )
    other, variables = {**batch, "label": (batch["label"] + 1) % 10}, Variables(params)
    loss = jax.jit(lambda x: family.phases[0].loss(variables, x, jax.random.key(1), NUM)[0])
    evaluate = jax.jit(lambda x: family.evaluate(variables, x, jax.random.key(1))[0])
    np.testing.assert_array_equal(loss(batch), loss(other))
    assert not np.array_equal(evaluate(batch), evaluate(other))


def test_a_trained_encoder_is_trained_and_a_fixed_one_is_used(batch):
    """Conditions by a table, learned with the network or given."""

    def table(trained):
        def encode(variables, label):
            where = variables.params if trained else variables.fixed
            return Condition(where["conditioning"]["table"][label])

        base = vector_conditioning("label", (), 4, lambda label: label)
        parameters = {"table": jnp.ones((10, 4))}
        if not trained:
            return base._replace(encode=encode, fixed=parameters)
        return base._replace(encode=encode, init=lambda key: parameters, trained=True)

    family = make(conditioning=table(trained=True))
    assert family.optimizers["denoise"].trains == ("denoiser", "conditioning")
    variables = jax.jit(family.init)(jax.random.key(0), batch)
    assert variables.params.keys() == {"denoiser", "conditioning"}
    plain = jax.eval_shape(make(conditioning=LABELS).init, jax.random.key(0), batch).params

    family = make(conditioning=table(trained=False))
    assert family.optimizers["denoise"].trains == ("denoiser",)
    fixed = family.fixed
    assert fixed["conditioning"]["table"].shape == (10, 4)
    shapes = jax.eval_shape(family.init, jax.random.key(0), batch, fixed)
    assert shapes.params.keys() == plain.keys()
    assert shapes.fixed.keys() == {"conditioning"}


def test_bad_arguments(batch):
    with pytest.raises(ValueError, match=r"condition_dropout must lie in \[0, 1\), got 1.0"):
        make(conditioning=LABELS, condition_dropout=1.0)
    with pytest.raises(ValueError, match="condition_dropout needs a conditioning"):
        make(condition_dropout=0.5)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        make(resampler=LossResampler(0))
    with pytest.raises(ValueError, match=r"guidance_scale must be 1 .* got 2.0"):
        make(sampler=Sampler(guidance_scale=2.0))
    with pytest.raises(ValueError, match="guidance_scale must be 1"):
        make().sample(NOTHING, jax.random.key(0), 1, sampler=Sampler(guidance_scale=2.0))
    with pytest.raises(ValueError, match="image_shape must be"):
        diffusion(UNet(), CHAIN, optax.adam(1e-3), image_shape=(8, 0, 1))
    wrong = {"image": jnp.zeros((2, 16, 16, 1))}
    with pytest.raises(ValueError, match=r"image_shape is \(8, 8, 1\), but the data has"):
        make().init(jax.random.key(0), wrong)
    with pytest.raises(ValueError, match="the batch must have the condition 'label'"):
        make(conditioning=LABELS).init(jax.random.key(0), {"image": batch["image"]})
