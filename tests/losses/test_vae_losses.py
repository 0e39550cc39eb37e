"""VAE losses: quadrature, a linear-Gaussian model whose likelihood is known, and double loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxgen.distributions.elementwise import gaussian_log_prob
from jaxgen.losses.reduce import weighted_mean
from jaxgen.losses.vae import (
    dreg_loss,
    free_bits,
    gaussian_kl_by_sample,
    gaussian_kl_to_standard,
    importance_bound,
    iwae_bound,
    iwae_loss,
    kl_warmup,
    maximum_mean_discrepancy,
    negative_elbo,
)


def test_kl_is_the_integral():
    means, stds = (
        np.array([[0.0, 0.7, -3.0], [0.1, 2.0, 0.0]]),
        np.array([[1, 0.2, 1.5], [3, 1, 0.05]]),
    )
    prior = stats.norm()

    def integral(mean, std):
        q = stats.norm(mean, std)
        return integrate.quad(
            lambda z: q.pdf(z) * (q.logpdf(z) - prior.logpdf(z)), *q.ppf([1e-13, 1 - 1e-13])
        )[0]

    want = np.vectorize(integral)(means, stds).sum(axis=1)  # summed over the latents
    got = gaussian_kl_to_standard(*(jnp.asarray(a, jnp.float32) for a in (means, 2 * np.log(stds))))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_kl_by_sample_has_the_kl_as_its_mean(key):
    num = 20_000
    mean = jnp.tile(jnp.array([0.5, -1.0]), (num, 1))
    log_variance = jnp.tile(jnp.array([-1.0, 0.4]), (num, 1))
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    draws = gaussian_kl_by_sample(z, mean, log_variance)
    exact = gaussian_kl_to_standard(mean[:1], log_variance[:1])[0]
    assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(num)
    # One draw by hand.
    want = stats.norm.logpdf(2.0, 0.5, 0.3) - stats.norm.logpdf(2.0)
    got = gaussian_kl_by_sample(*(jnp.full((1, 1), v) for v in (2.0, 0.5, 2 * np.log(0.3))))
    assert got[0] == pytest.approx(want, rel=1e-5)


def test_negative_elbo_and_its_terms():
    log_likelihood, kl = jnp.array([-90.0, -100.0]), jnp.array([20.0, 25.0])
    loss, terms = negative_elbo(log_likelihood, kl, beta=4.0)
    np.testing.assert_allclose(loss, [170, 200])
    np.testing.assert_allclose(terms["reconstruction"], [90, 100])
    np.testing.assert_allclose(terms["kl"], [20, 25])
    np.testing.assert_allclose(terms["negative_elbo"], [110, 125])
    loss, terms = negative_elbo(log_likelihood, kl)
    np.testing.assert_array_equal(loss, terms["negative_elbo"])
    traced, _ = jax.jit(negative_elbo)(log_likelihood, kl, jnp.float32(0.5))
    np.testing.assert_allclose(traced, [100, 112.5])


def test_free_bits_holds_the_batchs_mean():
    kl = jnp.array([[0.0, 3.0, 0.1], [1.0, 1.0, 0.2]])  # means 0.5, 2 and 0.15
    value = free_bits(kl, 0.4)
    np.testing.assert_allclose(value, [0 + 3 + 0.4, 1 + 1 + 0.4], rtol=1e-6)
    assert value.mean() == pytest.approx(0.5 + 2 + 0.4)
    np.testing.assert_allclose(free_bits(kl, 0.0), kl.sum(axis=1), rtol=1e-6)
    gradient = jax.grad(lambda kl: free_bits(kl, 0.4).mean())(kl)
    np.testing.assert_allclose(gradient, [[0.5, 0.5, 0]] * 2)


def test_free_bits_of_weighted_examples_is_that_of_the_slice():
    kl = jnp.array([[0.0, 3.0, 0.1], [1.0, 1.0, 0.2], [9.0, np.nan, 9.0]])
    got = weighted_mean(free_bits(kl, 0.4, jnp.array([1, 1, 0])), jnp.array([1, 1, 0]))
    assert got == pytest.approx(free_bits(kl[:2], 0.4).mean())


def test_kl_warmup():
    got = [float(kl_warmup(step, 10)) for step in (0, 1, 5, 10, 99)]
    np.testing.assert_allclose(got, [0, 0.1, 0.5, 1, 1])
    assert jax.jit(lambda step: kl_warmup(step, 4))(jnp.int32(3)) == 0.75


def test_iwae_is_a_stable_log_mean():
    log_weights = jnp.array([[-1000.0, 0.0, 3e4], [-1001.0, 1.0, -3e4], [-1002.0, 2.0, 0.0]])
    got = iwae_bound(log_weights)
    mean = np.log(np.mean(np.exp([0, 1, 2])))
    np.testing.assert_allclose(got, [-1002 + mean, mean, 3e4 - np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(iwae_loss(log_weights), -got)
    weights = jax.jacobian(lambda w: iwae_bound(w[:, None])[0])(log_weights[:, 1])
    np.testing.assert_allclose(weights, np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum(), rtol=1e-5)


# A linear-Gaussian model: z ~ N(0, 1), x | z ~ N(w z + b, s^2), so that x ~ N(b, w^2 + s^2); and a
# q that is not the posterior.
DECODER = {"w": jnp.float32(0.9), "b": jnp.float32(0.2), "log_s": jnp.float32(-0.7)}
ENCODER = {"mean": jnp.float32(0.6), "log_variance": jnp.float32(-0.9)}
X = 1.3


def log_joint(decoder, z):
    log_prior = gaussian_log_prob(z, 0.0, 0.0)
    log_likelihood = gaussian_log_prob(X, decoder["w"] * z + decoder["b"], 2 * decoder["log_s"])
    return log_prior + log_likelihood


def plain_log_weights(decoder, encoder, eps):
    """[K, B] log-weights of eps [K, B], of which encoder and decoder have the usual gradients."""
    z = encoder["mean"] + jnp.exp(0.5 * encoder["log_variance"]) * eps
    return log_joint(decoder, z) - gaussian_log_prob(z, encoder["mean"], encoder["log_variance"])


def dreg(decoder, encoder, eps):
    """`dreg_loss` used as its docstring says."""
    z = (encoder["mean"] + jnp.exp(0.5 * encoder["log_variance"]) * eps)[..., None]
    fixed = jax.lax.stop_gradient(encoder)

    def log_weights(z):
        log_q = gaussian_log_prob(z, fixed["mean"], fixed["log_variance"])
        return (log_joint(decoder, z) - log_q).sum(axis=-1)

    return dreg_loss(log_weights, z)


def iwae(decoder, encoder, eps):
    return iwae_loss(plain_log_weights(decoder, encoder, eps))


def negative_elbo_exact(decoder, encoder):
    """In closed form."""
    std, scale = jnp.exp(0.5 * encoder["log_variance"]), jnp.exp(decoder["log_s"])
    error = X - decoder["w"] * encoder["mean"] - decoder["b"]
    square = jnp.square(error) + jnp.square(decoder["w"] * std)
    nll = 0.5 * square / scale**2 + decoder["log_s"] + 0.5 * jnp.log(2 * jnp.pi)
    kl = gaussian_kl_to_standard(encoder["mean"][None], encoder["log_variance"][None])[0]
    return nll + kl


def test_iwae_lies_between_elbo_and_likelihood_and_tightens(key):
    total = 2**18
    log_weights = plain_log_weights(
        DECODER, ENCODER, jax.random.normal(key, (total,)).reshape(1, -1)
    )
    exact = stats.norm.logpdf(X, 0.2, np.hypot(0.9, np.exp(-0.7)))
    elbo = -float(negative_elbo_exact(DECODER, ENCODER))
    bounds = {K: iwae_bound(log_weights.reshape(K, -1)) for K in (1, 2, 8, 64, 4096)}
    np.testing.assert_array_equal(bounds[1], log_weights[0])  # each draw's own ELBO
    means = {K: float(bound.mean()) for K, bound in bounds.items()}
    assert means[1] == pytest.approx(elbo, abs=5e-3)
    assert means[1] < means[2] < means[8] < means[64] < exact + 2e-3
    assert means[4096] == pytest.approx(exact, abs=3e-3)
    assert exact - elbo > 0.05  # or there would be nothing to tighten


def per_draw_gradients(loss, K, num, key):
    """Gradients [num] of each parameter, one for each set of K draws."""
    eps = jax.random.normal(key, (num * K,)).reshape(num, K, 1)

    def one(eps):
        return jax.grad(lambda *p: loss(*p, eps)[0], argnums=(0, 1))(DECODER, ENCODER)

    return jax.jit(jax.vmap(one))(eps)


@pytest.mark.parametrize("K", [1, 2, 8])
def test_dreg_is_iwaes_gradient_in_expectation_with_less_noise(key, K):
    num = 2**16
    decoder, encoder = per_draw_gradients(dreg, K, num, key)
    plain_decoder, plain_encoder = per_draw_gradients(iwae, K, num, key)
    for name in DECODER:  # the decoder's is IWAE's, draw by draw
        np.testing.assert_allclose(decoder[name], plain_decoder[name], rtol=1e-3, atol=1e-4)
    for name in ENCODER:
        difference = np.asarray(encoder[name] - plain_encoder[name], float)
        assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(num)
        assert difference.std() > 0.1 * plain_encoder[name].std()  # another estimator
        assert encoder[name].std() < 0.8 * plain_encoder[name].std()


def test_dreg_of_one_sample_has_the_elbos_gradient(key):
    _, encoder = per_draw_gradients(dreg, 1, 2**16, key)
    want = jax.grad(negative_elbo_exact, argnums=1)(DECODER, ENCODER)
    for name, gradient in encoder.items():
        assert abs(gradient.mean() - want[name]) < 4 * gradient.std() / 2**8


def test_dreg_is_iwae_in_value_and_exact_at_the_posterior(key):
    eps = jax.random.normal(key, (15,)).reshape(5, 3)
    np.testing.assert_allclose(dreg(DECODER, ENCODER, eps), iwae(DECODER, ENCODER, eps), rtol=1e-6)
    # Where q is the posterior all weights are equal, and the encoder's gradient has no noise.
    w, s = 0.9, np.exp(-0.7)
    variance = 1 / (1 + (w / s) ** 2)
    posterior = {
        "mean": jnp.float32(variance * w * (X - 0.2) / s**2),
        "log_variance": jnp.float32(np.log(variance)),
    }
    gradient = jax.grad(lambda q: dreg(DECODER, q, eps).sum())(posterior)
    assert max(map(abs, gradient.values())) < 1e-4


def test_dreg_costs_no_more_than_iwae(key):
    # It calls the model twice on the same numbers, which XLA sees.
    weight, z = jax.random.normal(key, (64, 64)), jax.random.normal(key, (3, 4, 64))

    def log_weights(weight, z):
        return jnp.tanh(z @ weight).sum(axis=-1)

    def flops(loss):
        gradient = jax.jit(jax.grad(lambda w, z: loss(w, z).sum(), argnums=(0, 1)))
        return gradient.lower(weight, z).compile().cost_analysis()["flops"]

    plain = flops(lambda w, z: iwae_loss(log_weights(w, z)))
    assert flops(lambda w, z: dreg_loss(lambda z: log_weights(w, z), z)) < 1.05 * plain


def mmd_by_loops(x, y, kernel, c, unbiased):
    def k(a, b):
        distance = sum((a - b) ** 2)
        return c / (c + distance) if kernel == "imq" else np.exp(-distance / c)

    def within(a):
        pairs = [
            k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j or not unbiased
        ]
        return np.mean(pairs)

    return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_is_the_double_loop(key, kernel, scale, unbiased):
    key_x, key_y = jax.random.split(key)
    x = jax.random.normal(key_x, (7, 3))
    y = 1.5 * jax.random.normal(key_y, (5, 3)) + 0.5
    got = maximum_mean_discrepancy(x, y, kernel=kernel, scale=scale, unbiased=unbiased)
    points = (np.asarray(a, float) for a in (x, y))
    want = mmd_by_loops(*points, kernel, 6.0 if scale is None else scale, unbiased)
    assert got == pytest.approx(want, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_tells_sets_apart(key, kernel):
    x, same, other = jax.random.normal(key, (3, 200, 2))
    assert maximum_mean_discrepancy(x, x, kernel=kernel, unbiased=False) == 0
    assert abs(maximum_mean_discrepancy(x, same, kernel=kernel)) < 0.01
    assert maximum_mean_discrepancy(x, other + 1, kernel=kernel) > 0.1
    # Equal mean, other spread: a difference of means would not see it.
    assert maximum_mean_discrepancy(x, 3 * other, kernel=kernel) > 0.05
    gradient = jax.grad(lambda x: maximum_mean_discrepancy(x, x, kernel=kernel))(x)
    assert np.isfinite(gradient).all()


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
        bound = importance_bound(log_weights, jax.random.key(1), 5, chunk)
        np.testing.assert_allclose(bound, expected, rtol=1e-5)


POINTS = jnp.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: negative_elbo(jnp.zeros(2), jnp.zeros(2), -0.1), "beta must be 0 or more, got -0"),
        (lambda: negative_elbo(jnp.zeros(2), jnp.zeros(2), float("nan")), "beta must be"),
        (lambda: free_bits(POINTS, -1.0), "minimum must be 0 or more nats, got -1"),
        (lambda: kl_warmup(3, 0), "num_steps must be at least 1, got 0"),
        (
            lambda: importance_bound(lambda keys: POINTS, jax.random.key(0), 3, 0),
            "num_samples and chunk must be at least 1, got 3 and 0",
        ),
        (lambda: iwae_bound(jnp.zeros((0, 4))), r"at least 1, got shape \(0, 4\)"),
        (lambda: iwae_loss(jnp.zeros((0, 4))), r"at least 1, got shape \(0, 4\)"),
        (lambda: dreg_loss(lambda z: z[0], jnp.zeros((2, 3, 4))), r"= \(2, 3\) for z .* \(3, 4\)"),
        (lambda: maximum_mean_discrepancy(POINTS, POINTS, kernel="cubic"), "one of imq, rbf"),
        (lambda: maximum_mean_discrepancy(POINTS, POINTS, scale=0.0), "must be positive, got 0"),
        (lambda: maximum_mean_discrepancy(POINTS[:1], POINTS), "at least 2 points, got 1 and 3"),
        (
            lambda: maximum_mean_discrepancy(POINTS, POINTS[:0], unbiased=False),
            "at least 1 points, got 3 and 0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
