"""The families of autoencoders keep the contract, and their numbers are those of the papers."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import conditioning, likelihoods
from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_model_space
from jaxgen.families import vae, vqvae
from jaxgen.models import vae as networks
from jaxgen.models import vqvae as codebooks
from jaxgen.training import latent_pictures
from jaxgen.training.step import init_state, make_step
from jaxgen.training.strategies import Feed, make_strategy

LATENT, SHAPE = 3, (8, 8, 1)
CLASSES = conditioning.labels(10)


def make_vae(likelihood=None, *, optimizer=None, features=(16,), **options):
    likelihood = likelihood or likelihoods.discretized_logistic()
    return vae.vae(
        networks.DenseEncoder(LATENT, features),
        networks.DenseDecoder(SHAPE[:2], likelihood.num_params(1), features),
        likelihood,
        optimizer or optax.adam(3e-3),
        **{"latent_dim": LATENT, "image_shape": SHAPE, "eight_bit": True, **options},
    )


def make_autoencoder(optimizer=None):
    return vae.autoencoder(
        networks.DenseEncoder(LATENT, (16,), stochastic=False),
        networks.DenseDecoder(SHAPE[:2], 1, (16,)),
        optimizer or optax.adam(3e-3),
        latent_dim=LATENT,
        image_shape=SHAPE,
    )


def make_vqvae(optimizer=None, **options):
    likelihood = likelihoods.discretized_logistic()
    return vqvae.vqvae(
        codebooks.Encoder(4, 4, 1, 0),
        codebooks.Decoder(2, 4, 1, 0),
        likelihood,
        optimizer or optax.adam(3e-3),
        **{"num_codes": 8, "image_shape": SHAPE, "eight_bit": True, **options},
    )


def batch(num=32):
    data = digits("train")[np.arange(num)]
    return {
        "image": to_model_space(jnp.asarray(data["image"])),
        "label": jnp.asarray(data["label"]),
    }


def evaluated(family, params, state, data, seed=0):
    call = jax.jit(lambda *a: family.evaluate(*a, train=False))
    return call(params, state, data, jax.random.key(seed))


def trained_on(family, params, state, data, seed=0):
    call = jax.jit(lambda *a: family.phases[0].loss(*a, train=True))
    return call(params, state, data, jax.random.key(seed))


def logged(family, params, state, data, seed=0):
    return jax.jit(family.log_prob)(params, state, data, jax.random.key(seed))


def moved(family, data, seed=0):
    """Parameters away from their initialization, where biases are zero, and the state."""
    params, state = jax.jit(family.init)(jax.random.key(seed), data)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy), state


VARIANTS = {
    "conditional, all modifications": (
        make_vae,
        {
            "conditioning": CLASSES,
            "beta": 2.0,
            "kl_warmup_steps": 3,
            "free_bits": 0.1,
            "mmd_weight": 10.0,
            "perceptual": lambda x: [x[:, ::2], 0.1 * x],
        },
    ),
    "dreg": (make_vae, {"objective": "dreg", "num_importance": 4, "bound_samples": 5}),
    "autoencoder": (make_autoencoder, {}),
    "vqvae": (make_vqvae, {}),
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def trained(request):
    """(name, family, data, first state, what forty steps make of it)."""
    maker, options = VARIANTS[request.param]
    family, data = maker(**options), batch()
    first = jax.jit(lambda: init_state(family, jax.random.key(0), data))()
    step = jax.jit(make_step(family, ema=0.9))
    results, state = [], first
    for i in range(40):
        results.append(step(state, data, jax.random.key(i)))
        state = results[-1].state
    assert step._cache_size() == 1
    return request.param, family, data, first, results


def test_steps_lower_the_loss(trained):
    """Every metric is finite, every parameter moves, and so does held-out loss, downwards."""
    _, family, data, first, results = trained
    last = results[-1].state
    pairs = zip(*(jax.tree.leaves(s.params) for s in (first, last)), strict=True)
    assert not any(np.array_equal(a, b) for a, b in pairs)
    for total, weight in results[-1].metrics.values():
        assert np.isfinite(total)
        assert weight > 0
    assert int(results[-1].bad) == -1
    evaluate = jax.jit(
        lambda s: family.evaluate(s.params, s.model_state, data, jax.random.key(9), train=False)
    )
    (before, _), (after, aux) = evaluate(first), evaluate(last)
    assert after.shape == (32,)
    assert after.dtype == jnp.float32
    assert after.mean() < 0.95 * before.mean()
    jax.tree.map(np.testing.assert_array_equal, aux.model_state, last.model_state)


def test_metrics(trained):
    name, family, data, _, results = trained
    state = results[-1].state
    loss, aux = evaluated(family, state.params, state.model_state, data)
    assert all(v.shape == (32,) for v in aux.metrics.values())
    if name == "autoencoder":
        np.testing.assert_allclose(aux.metrics["mse"] * 64, loss, rtol=1e-5)
        assert family.log_prob is None
        return
    np.testing.assert_allclose(aux.metrics["bits_per_dim"] * 64 * np.log(2), loss, rtol=1e-5)
    log_prob = logged(family, state.params, state.model_state, data)
    np.testing.assert_allclose(log_prob, -loss, rtol=1e-5)
    if name == "vqvae":
        bound = aux.metrics["reconstruction"] + 16 * math.log(8)  # 4x4 positions, 8 codes
        np.testing.assert_allclose(bound, loss, rtol=1e-6)
        indices = np.asarray(family.encode(state.params, state.model_state, data, None))
        shares = np.bincount(indices.ravel(), minlength=8) / indices.size
        entropy = -sum(p * math.log(p) for p in shares if p)
        np.testing.assert_allclose(aux.metrics["perplexity"], math.exp(entropy), rtol=1e-5)
        np.testing.assert_allclose(aux.metrics["usage"], (shares > 0).mean(), rtol=1e-6)
    else:
        parts = aux.metrics["reconstruction"] + aux.metrics["kl"]
        np.testing.assert_allclose(parts, aux.metrics["negative_elbo"], rtol=1e-5)


def test_sample_encode_decode(trained):
    name, family, data, _, results = trained
    state, key = results[-1].state, jax.random.key(0)
    told = None if "conditional" not in name else jnp.array([0, 1, 2])
    latents = jax.jit(family.encode)(state.params, state.model_state, data, key)
    options = {} if told is None else {"condition": data["label"]}
    decode = jax.jit(lambda z: family.decode(state.params, state.model_state, z, key, **options))
    rebuilt = decode(latents)
    assert rebuilt.shape == data["image"].shape
    assert np.abs(rebuilt).max() <= 1
    if name in ("autoencoder", "vqvae"):
        with pytest.raises(ValueError, match="no prior"):
            family.sample(state.params, state.model_state, key, 3)
        return
    sample = jax.jit(
        lambda key: family.sample(state.params, state.model_state, key, 3, condition=told)
    )
    images = sample(key)
    assert images.shape == (3, *SHAPE)
    assert np.abs(images).max() <= 1
    np.testing.assert_array_equal(images, sample(key))
    assert not np.array_equal(images, sample(jax.random.key(1)))


def linear_gaussian(weights, mean, log_variance, scale=0.5, **options):
    """A VAE whose p(x) is Gaussian, `N(0, W W^T + scale^2 I)`, and its parameters.

    q(z | x) = N(mean x, e^log_variance) with the given matrix and vector.
    """
    dims, latent = weights.shape
    raw = 15 * np.arctanh(np.asarray(log_variance) / 15)
    params = {
        "encoder": {
            "posterior": {
                "mean": {"kernel": mean.T, "bias": jnp.zeros(latent)},
                "log_variance": {"kernel": jnp.zeros((dims, latent)), "bias": raw},
            }
        },
        "decoder": {"pixels": {"kernel": weights.T, "bias": jnp.zeros(dims)}},
    }
    family = vae.vae(
        networks.DenseEncoder(latent, ()),
        networks.DenseDecoder((1, dims), 1, ()),
        likelihoods.gaussian(scale),
        optax.adam(1e-3),
        latent_dim=latent,
        image_shape=(1, dims, 1),
        **options,
    )
    return family, jax.tree.map(jnp.asarray, params)


def exact(weights, x, scale=0.5):
    stats = pytest.importorskip("scipy.stats")
    covariance = weights @ weights.T + scale**2 * np.eye(len(weights))
    return stats.multivariate_normal(np.zeros(len(weights)), covariance).logpdf(x[:, 0, :, 0])


def gaussian_data(weights, num=6, scale=0.5):
    rng = np.random.default_rng(0)
    z, noise = rng.normal(size=(num, weights.shape[1])), rng.normal(size=(num, weights.shape[0]))
    return (z @ weights.T + scale * noise).reshape(num, 1, -1, 1).astype(np.float32)


def test_exact_posterior_gives_the_exact_likelihood():
    """With q(z | x) = p(z | x) every weight is p(x): any K and any draw, and the ELBO's mean."""
    weights = np.array([[1.0, 0.5], [-1.0, 0.5], [0.5, 0.0], [0.0, 1.0]], np.float32)
    weights[:, 1] -= weights[:, 0] * (weights[:, 0] @ weights[:, 1]) / (weights[:, 0] ** 2).sum()
    precision = 1 + (weights**2).sum(axis=0) / 0.25  # diagonal: the columns are orthogonal
    mean = (weights / 0.25 / precision).T
    x = gaussian_data(weights)
    for samples in (2, 7):
        family, params = linear_gaussian(
            weights, mean, -np.log(precision), bound_samples=samples, bound_chunk=3
        )
        nats = logged(family, params, {}, {"image": jnp.asarray(x)}, samples)
        np.testing.assert_allclose(nats, exact(weights, x), rtol=1e-4, atol=1e-3)
    family, params = linear_gaussian(weights, mean, -np.log(precision))
    data = {"image": jnp.asarray(np.repeat(x[:1], 4000, axis=0))}
    elbo = logged(family, params, {}, data)
    assert elbo.mean() == pytest.approx(exact(weights, x[:1]), abs=0.1)


def test_bound_rises_with_the_samples_to_the_likelihood():
    """A posterior that is wrong: ELBO < IWAE-10 < IWAE-2000, which is the exact number nearly."""
    weights = np.array([[1.0, 0.3], [-1.0, 0.8], [0.5, 0.5]], np.float32)
    mean = 0.2 * weights.T
    x = gaussian_data(weights, num=200)
    found = []
    for samples in (1, 10, 2000):
        family, params = linear_gaussian(
            weights, mean, [-0.5, -0.5], bound_samples=samples, bound_chunk=100
        )
        found.append(float(logged(family, params, {}, {"image": jnp.asarray(x)}).mean()))
    truth = exact(weights, x).mean()
    assert found[0] + 0.2 < found[1] < found[2] - 0.02
    assert found[2] == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_are_one_bound(chunk):
    """7 samples, one by one and in chunks that do not divide them: the same bound."""
    data = batch(8)
    whole = make_vae(bound_samples=7, bound_chunk=7)
    params, state = moved(whole, data)
    expected = logged(whole, params, state, data, 1)
    family = make_vae(bound_samples=7, bound_chunk=chunk)
    found = logged(family, params, state, data, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = logged(family, params, state, data, 2)
    assert not np.allclose(other, expected, rtol=1e-4)


def test_importance_bound_by_hand():
    values = jax.random.normal(jax.random.key(0), (5, 2)) * 10

    def log_weights(keys):  # the k-th key's row, whatever the chunk
        every = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(5))
        data, given = jax.random.key_data(every), jax.random.key_data(keys)
        same = (given[:, None] == data[None]).all(axis=-1)
        return (
            jnp.where(same[:, :, None], values[None], 0.0).sum(axis=1)
            + jnp.where(same.any(axis=1), 0.0, 100.0)[:, None]
        )  # a sample too many would outweigh all others

    expected = np.log(np.exp(np.asarray(values, np.float64)).mean(axis=0))
    for chunk in (1, 2, 5, 9):
        found = vae.importance_bound(log_weights, jax.random.key(1), 5, chunk)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def values(**options):
    """(loss, metrics) in training at equal parameters and key."""
    data = batch(16)
    family = make_vae(likelihoods.gaussian(), features=(), eight_bit=False, **options)
    params, state = moved(family, data)
    loss, aux = trained_on(family, params, state, data)
    return loss, aux


def test_what_each_weight_weighs():
    base, aux = values()
    kl = aux.metrics["kl"]
    np.testing.assert_allclose(values(beta=3.0)[0] - base, 2 * kl, rtol=1e-3)
    loss, aux = values(mmd_weight=1000.0)
    np.testing.assert_allclose(loss - base, 1000 * aux.metrics["mmd"], rtol=1e-2, atol=1e-2)
    assert len(set(np.asarray(aux.metrics["mmd"]).tolist())) == 1
    loss, _ = values(free_bits=5.0)  # above every latent's KL
    np.testing.assert_allclose(loss - aux.metrics["reconstruction"], LATENT * 5.0, rtol=1e-3)
    loss, aux = values(perceptual=lambda x: 2 * x, perceptual_weight=0.5)
    np.testing.assert_allclose(loss - base, 0.5 * aux.metrics["perceptual"], rtol=1e-3)
    zero, aux = values(kl_warmup_steps=4)
    np.testing.assert_allclose(zero, aux.metrics["reconstruction"], rtol=1e-6)


def test_iwae_and_dreg_are_one_number_and_tighter():
    iwae, aux = values(objective="iwae", num_importance=8)
    np.testing.assert_allclose(values(objective="dreg", num_importance=8)[0], iwae, rtol=1e-5)
    assert iwae.mean() < aux.metrics["negative_elbo"].mean()


def test_dreg_knows_the_encoder_through_z_alone():
    """At K = 1 with the exact posterior the encoder's gradient is zero, draw by draw."""
    weights = np.array([[1.0], [-0.5], [0.5]], np.float32)
    precision = 1 + (weights**2).sum(axis=0) / 0.25
    mean = (weights / 0.25 / precision).T
    x = jnp.asarray(gaussian_data(weights))
    norms = {}
    for objective in ("iwae", "dreg"):
        family, params = linear_gaussian(weights, mean, -np.log(precision), objective=objective)
        grads = jax.grad(
            lambda p, f=family: (
                f.phases[0].loss(p, {}, {"image": x}, jax.random.key(0), train=True)[0].sum()
            )
        )(params)["encoder"]
        norms[objective] = float(optax.tree.norm(grads))
    assert norms["dreg"] < 1e-3 < 0.1 < norms["iwae"]


def test_warmup_counts_losses_in_training_only():
    data = batch(16)
    family = make_vae(kl_warmup_steps=4, beta=2.0)
    params, state = moved(family, data)
    shares = []
    for _ in range(6):
        loss, aux = trained_on(family, params, state, data)
        excess = (loss - aux.metrics["reconstruction"]) / aux.metrics["kl"]
        shares.append(float(excess.mean()))
        state = aux.model_state
    np.testing.assert_allclose(shares, [0, 0.5, 1, 1.5, 2, 2], atol=1e-3)
    assert int(state["losses"]) == 6
    assert state["losses"].dtype == jnp.int32
    loss, aux = evaluated(family, params, state, data)
    np.testing.assert_allclose(loss, aux.metrics["negative_elbo"], rtol=1e-6)
    assert int(aux.model_state["losses"]) == 6


def test_active_units():
    """One latent follows the image, one is constant, one varies by less than 0.01; masks count."""
    x = np.zeros((4, 1, 3, 1), np.float32)
    x[:, 0, 0, 0] = [-1, 1, -1, 1]
    x[:, 0, 1, 0] = [-0.05, 0.05, -0.05, 0.05]
    family, params = linear_gaussian(np.eye(3, dtype=np.float32), np.eye(3), [-1.0] * 3)

    def share(mask=None):
        data = {"image": jnp.asarray(x), **({} if mask is None else {"mask": jnp.asarray(mask)})}
        _, aux = evaluated(family, params, {}, data)
        return np.asarray(aux.metrics["active_units"])

    np.testing.assert_allclose(share(), [1 / 3] * 4, rtol=1e-6)
    np.testing.assert_array_equal(share([1.0, 0.0, 1.0, 0.0]), np.zeros(4))


@pytest.mark.parametrize(
    ("warn", "metrics", "word"),
    [
        (vae.warnings, {"active_units": 0.01}, "posterior has collapsed"),
        (vae.warnings, {"active_units": 0.3}, None),
        (vae.warnings, {"loss": 1.0}, None),
        (vqvae.warnings, {"usage": 0.01}, "codebook has collapsed"),
        (vqvae.warnings, {"usage": 0.5}, None),
    ],
)
def test_warnings(warn, metrics, word):
    assert [word in w for w in warn(metrics)] == ([] if word is None else [True])


def test_outputs():
    """Samples of the model have noise in each pixel; means have none."""
    data = batch()
    bernoulli = likelihoods.bernoulli()
    images = {}
    for output in ("mean", "mode", "sample"):
        family = make_vae(bernoulli, output=output, eight_bit=False)
        params, state = moved(family, data)
        images[output] = np.asarray(family.sample(params, state, jax.random.key(0), 4))
    np.testing.assert_array_equal(np.sign(images["mean"]), images["mode"])
    assert set(np.unique(images["sample"])) == {-1, 1}
    assert not np.array_equal(images["sample"], images["mode"])


class Shift(nn.Module):
    """x + b: the simplest encoder or decoder."""

    @nn.compact
    def __call__(self, x):
        return x + self.param("b", nn.initializers.zeros, (x.shape[-1],)).reshape(1, 1, 1, -1)


def test_straight_through_gradients():
    """The decoder's gradient at the code, and the commitment's, arrive at the encoder's output."""
    family = vqvae.vqvae(
        Shift(),
        Shift(),
        likelihoods.gaussian(1.0),
        optax.sgd(1.0),
        num_codes=3,
        image_shape=(2, 2, 2),
        commitment_weight=0.25,
    )
    x = jax.random.normal(jax.random.key(0), (5, 2, 2, 2))
    params, state = jax.jit(family.init)(jax.random.key(1), {"image": x})
    book = state["codebook"]
    encoded = np.asarray(x)
    codes = np.asarray(book.codes)[np.asarray(codebooks.nearest(book.codes, x))]
    assert np.abs(encoded - codes).max() > 0.1

    def objective(params):
        return trained_on(family, params, state, {"image": x})[0].sum()

    value, grads = jax.jit(jax.value_and_grad(objective))(params)
    squares = np.square(codes - encoded).sum()
    constant = 0.5 * math.log(2 * math.pi) * encoded.size
    assert value == pytest.approx(0.5 * squares + constant + 0.25 * squares, rel=1e-5)
    at_decoder = (codes - encoded).sum(axis=(0, 1, 2))  # of |code + b - x|^2 / 2
    commitment = 0.25 * 2 * (encoded - codes).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(grads["decoder"]["b"], at_decoder, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads["encoder"]["b"], at_decoder + commitment, rtol=1e-4, atol=1e-4)


def runner(family, data, strategy):
    """(first state, `run(state, num_steps) -> state on the host`)."""
    placed = strategy.put_global(data)
    first = strategy.init(lambda k, x: init_state(family, k, x), jax.random.key(0), placed)
    feed = Feed(lambda data, step, shard: data, lambda key, raw: raw, seed=0, resident=False)
    step = make_step(family, axis_name=strategy.axis_name)
    compiled = strategy.compile(step, feed, first)
    host = jax.device_get(first)

    def run(state, num_steps):
        streak = strategy.put_replicated(np.int32(0))
        placed = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, first)
        batch = strategy.put_batch(data)
        return jax.device_get(compiled(placed, streak, batch, num_steps)[0])

    return host, run


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), a, b)


def kill(state, code=3):
    """Sets a code far away, its share near death."""
    book = jax.tree.map(np.copy, state.model_state["codebook"])
    book.shares[code], book.sums[code] = 1e-6, 1.0
    return state._replace(model_state={"codebook": book})


def test_eight_devices_equal_one():
    """Parameters and warm-up after two steps under jit, statistics of the batch in the loss."""
    family = make_vae(
        optimizer=optax.sgd(1e-3), mmd_weight=1.0, free_bits=0.1, kl_warmup_steps=2, features=()
    )
    data = jax.tree.map(np.asarray, batch(16))
    states = []
    for devices in (jax.devices()[:1], jax.devices()):
        first, run = runner(family, data, make_strategy("jit", devices))
        states.append(run(first, 2))
    one, eight = states
    assert int(one.step) == 2
    close((one.params, one.model_state), (eight.params, eight.model_state))


def test_codebook_on_one_and_eight_devices():
    """Equal under jit, revival included; under pmap the averages are those of the whole batch, and
    a revived code is one device's output, not a mean of several."""
    data = jax.tree.map(np.asarray, batch(16))
    runs = {}
    for name, devices in (("one", 1), ("eight", 8), ("pmap", 8)):
        strategy = make_strategy("pmap" if name == "pmap" else "jit", jax.devices()[:devices])
        family = make_vqvae(optax.sgd(1e-3), axis_name=strategy.axis_name)
        first, runs[name] = runner(family, data, strategy)
    alive = {name: run(first, 2) for name, run in runs.items()}
    assert int(alive["one"].step) == 2
    for name in ("eight", "pmap"):
        close(alive["one"].params, alive[name].params)
        close(alive["one"].model_state, alive[name].model_state)
    revived = {name: run(kill(first), 1) for name, run in runs.items()}
    close(revived["one"].model_state, revived["eight"].model_state)
    outputs = jax.jit(codebooks.Encoder(4, 4, 1, 0).apply)(
        {"params": first.params["encoder"]}, data["image"]
    )
    for state in revived.values():
        book = state.model_state["codebook"]
        assert book.shares[3] == pytest.approx(1 / 8)
        code = book.sums[3] / book.shares[3]
        assert np.abs(np.asarray(outputs).reshape(-1, 4) - code).max(axis=1).min() < 1e-5


def test_a_prior_is_used():
    data = batch()

    def prior(key, num, condition):
        return jnp.full((num, 4, 4), 5)

    family = make_vqvae(prior=prior)
    params, state = jax.jit(family.init)(jax.random.key(0), data)
    decode = jax.jit(family.decode)
    images = jax.jit(lambda key: family.sample(params, state, key, 2))(jax.random.key(0))
    fives = decode(params, state, jnp.full((2, 4, 4), 5), jax.random.key(0))
    np.testing.assert_allclose(images, fives, atol=1e-6)
    nothing = decode(params, state, jnp.full((2, 4, 4), 8), jax.random.key(0))
    assert np.isnan(nothing).all()  # no such code: not another one instead
    with pytest.raises(ValueError, match="must be indices of codes, integers, got float32"):
        family.decode(params, state, jnp.zeros((1, 4, 4)), jax.random.key(0))


@pytest.mark.parametrize(
    ("maker", "options", "message"),
    [
        (make_vae, {"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        (make_vae, {"image_shape": (8, 8, 0)}, "image_shape must be"),
        (make_vae, {"num_importance": 0}, "num_importance must be at least 1, got 0"),
        (make_vae, {"bound_samples": 0}, "bound_samples must be at least 1, got 0"),
        (make_vae, {"bound_chunk": -1}, "bound_chunk must be at least 1"),
        (make_vae, {"beta": -1.0}, "beta must be 0 or more, got -1"),
        (make_vae, {"mmd_weight": float("nan")}, "mmd_weight must be 0 or more"),
        (make_vae, {"objective": "elbow"}, "objective must be"),
        (make_vae, {"output": "median"}, "output must be"),
        (make_vae, {"objective": "iwae", "beta": 2.0}, "belong to the objective 'elbo'"),
        (make_vqvae, {"num_codes": 1}, "num_codes must be at least 2, got 1"),
        (make_vqvae, {"decay": 1.0}, r"decay must lie in \[0, 1\), got 1"),
        (make_vqvae, {"revive_below": -0.1}, "revive_below must lie in"),
        (make_vqvae, {"commitment_weight": -1.0}, "commitment_weight must be 0 or more"),
    ],
)
def test_bad_options(maker, options, message):
    with pytest.raises(ValueError, match=message):
        maker(**options)


@pytest.mark.parametrize("maker", [make_vae, make_vqvae])
def test_data_outside_the_support(maker):
    """Refused with concrete data, before any training."""
    data = batch(4)
    with pytest.raises(ValueError, match=r"data must lie in \[-1, 1\]"):
        maker().init(jax.random.key(0), {**data, "image": data["image"] * 255})
    with pytest.raises(ValueError, match="must be one of the 256 values"):
        maker().init(jax.random.key(0), {**data, "image": data["image"] * 0.999})


def test_networks_that_do_not_fit():
    data, key = batch(4), jax.random.key(0)
    with pytest.raises(ValueError, match=r"image_shape is \(8, 9, 1\), but the data has"):
        make_vae(image_shape=(8, 9, 1)).init(key, data)
    with pytest.raises(ValueError, match=r"latent_dim is 4, but the encoder has \(3,\)"):
        make_vae(latent_dim=4).init(key, data)
    decoder = networks.DenseDecoder((8, 8), 1, ())
    family = vae.vae(
        networks.DenseEncoder(LATENT, ()),
        decoder,
        likelihoods.discretized_logistic(),
        optax.adam(1e-3),
        latent_dim=LATENT,
        image_shape=SHAPE,
    )
    with pytest.raises(
        ValueError, match=r"decoder makes \(8, 8, 1\), but images .* need \(8, 8, 2\)"
    ):
        family.init(key, data)
    told = make_vae(conditioning=CLASSES)
    params, state = told.init(key, data)
    with pytest.raises(ValueError, match="condition must be given"):
        told.sample(params, state, key, 2)


def identity(family_condition=None):
    """A family whose latents are the images' first two pixels, decoded to two pixels."""

    def encode(params, model_state, batch, key):
        return batch["image"][:, 0, :, 0]

    def decode(params, model_state, latents, key, *, condition=None):
        told = 0.0 if condition is None else condition.reshape(-1, 1, 1, 1)
        return latents.reshape(-1, 1, 2, 1) + told

    base = make_autoencoder()
    return base._replace(encode=encode, decode=decode)


def draw(picture, x, rows, columns, **entries):
    data = {"image": jnp.asarray(x).reshape(-1, 1, 2, 1), **entries}
    return np.asarray(picture({}, {}, data, jax.random.key(0), rows, columns)).reshape(-1, 2)


def test_pictures():
    """Where each image of a grid must be, with a family that shows its latents."""
    family = identity()
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = draw(latent_pictures.reconstructions(family), x, 5, 3)
    black = [[-1.0, -1.0]]
    expected = [*x[:3], *x[:3], *x[3:], *black, *x[3:], *black]
    np.testing.assert_array_equal(found, expected)

    found = draw(latent_pictures.between_examples(family, path="linear"), x, 5, 3)
    rows = found.reshape(5, 3, 2)
    np.testing.assert_allclose(rows[:, 0], x, rtol=1e-5)
    np.testing.assert_allclose(rows[:, 2], np.roll(x, -1, axis=0), rtol=1e-5)
    np.testing.assert_allclose(rows[0, 1], (x[0] + x[1]) / 2, rtol=1e-5)

    varied = np.array([[0.5, 1.0], [0.6, 9.0]], np.float32)  # the second varies more
    rows = draw(latent_pictures.traversal(family, 2), varied, 2, 3).reshape(2, 3, 2)
    np.testing.assert_allclose(rows[0], [[0.5, -3], [0.5, 0], [0.5, 3]], atol=1e-6)
    np.testing.assert_allclose(rows[1], [[-3, 1], [0, 1], [3, 1]], atol=1e-6)

    groups = [
        lambda v=v: {"image": jnp.asarray(v, jnp.float32).reshape(-1, 1, 2, 1)}
        for v in ([[0, 0], [2, 0]], [[1, 3], [1, 5]])
    ]
    picture = latent_pictures.attribute_direction(family, *groups, strength=2.0)
    rows = draw(picture, x, 2, 3).reshape(2, 3, 2)
    np.testing.assert_allclose(rows[1], [[2, 0], [2, 4], [2, 8]], atol=1e-6)

    rows = draw(latent_pictures.latent_plane(family), x, 3, 5).reshape(3, 5, 2)
    side, top = 1.2815516, 0.9674216  # the normal distribution's quantiles of 9/10 and 5/6
    np.testing.assert_allclose(rows[0, 0], [-side, top], rtol=1e-5)
    np.testing.assert_allclose(rows[2, 4], [side, -top], rtol=1e-5)
    np.testing.assert_allclose(rows[1, 2], [0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="limit must be positive"):
        latent_pictures.traversal(family, 2, limit=0.0)


def test_pictures_tell_the_condition():
    """Each image is decoded under its own example's condition."""
    family, x = identity(), np.zeros((2, 2), np.float32)
    told = jnp.array([10.0, 20.0])
    options = {"condition_key": "label"}
    found = draw(latent_pictures.reconstructions(family, **options), x, 2, 2, label=told)
    np.testing.assert_array_equal(found[2:], [[10, 10], [20, 20]])
    picture = latent_pictures.between_examples(family, path="linear", **options)
    found = draw(picture, x, 2, 2, label=told)
    np.testing.assert_array_equal(found[:, 0], [10, 10, 20, 20])
    found = draw(latent_pictures.latent_plane(family, condition=10.0), x, 1, 1)
    assert found.tolist() == [[10, 10]]


def test_gradients_at_extremes():
    """Images at both ends and latents far out: loss and gradient stay finite."""
    family = make_vae()
    data = {"image": jnp.where(jnp.arange(64).reshape(1, 8, 8, 1) % 2 == 0, 1.0, -1.0)}
    data = {"image": jnp.tile(data["image"], (2, 1, 1, 1))}
    params, state = jax.jit(family.init)(jax.random.key(0), data)
    wild = jax.tree.map(lambda p: 100 * p, params)

    def objective(params):
        return trained_on(family, params, state, data)[0].sum()

    value, grads = jax.jit(jax.value_and_grad(objective))(wild)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
