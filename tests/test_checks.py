"""Checked choices and shapes: what would broadcast is refused by every loss and distribution."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxgen.checks import check_batch, check_broadcast, check_choice, check_memory, check_same_shape
from jaxgen.distributions import elementwise, likelihoods, logistic
from jaxgen.losses import (
    autoregressive,
    auxiliary,
    diffusion,
    flow,
    gan,
    perceptual,
    reduce,
    vae,
    vq,
)
from jaxgen.noise.chain import Posterior, chain, linear_betas, posterior_mean
from jaxgen.noise.parametrization import EPS, Denoised, ask, interpret, to_eps
from jaxgen.noise.process import Level, q_sample


@pytest.fixture
def as_users_run():
    """Without jaxtyping's check of annotations, which tests alone have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_check_choice():
    check_choice("mode", "a", ("a", "b"))
    with pytest.raises(ValueError, match="mode must be one of a, b, got 'c'"):
        check_choice("mode", "c", ("a", "b"))


def test_memory():
    check_memory("a little", 1)
    with pytest.raises(
        ValueError, match=r"a lot would take 1024 GiB, and this machine has [\d.]+ GiB"
    ):
        check_memory("a lot", 2**40)


def test_check_same_shape():
    check_same_shape(a=np.zeros((2, 3)), b=jnp.zeros((2, 3)), c=np.ones((2, 3)))
    with pytest.raises(
        ValueError, match=r"a, b and c must match in shape, got \(2,\), \(2,\) and \(2, 1\)"
    ):
        check_same_shape(a=np.zeros(2), b=np.zeros(2), c=np.zeros((2, 1)))


def test_check_batch():
    check_batch(2, a=np.zeros(2), b=jnp.zeros(2))
    with pytest.raises(ValueError, match=r"b must have one number .* \(2,\), got \(1,\)"):
        check_batch(2, a=np.zeros(2), b=np.zeros(1))


@pytest.mark.parametrize("shapes", [((3,), (2, 3)), ((2,), (3,)), ((2, 1), (3, 3))])
def test_check_broadcast(shapes):
    check_broadcast(a=0.0, b=np.zeros((2, 1)), c=np.zeros((1, 3)), d=np.zeros((2, 3)))
    a, b = (np.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="a and b must be numbers or match in shape but for axes"):
        check_broadcast(a=a, b=b)


X = jnp.zeros((2, 4, 4, 3))
WRONG = [jnp.zeros(shape) for shape in ((2, 4, 4, 1), (1, 4, 4, 3), (4, 4, 3))]
LEVEL = Level(jnp.full(2, 0.6), jnp.full(2, 0.8), jnp.zeros(2, jnp.int32))
CHAIN = chain(linear_betas(4))
ONE, TWO, T = jnp.zeros(1), jnp.zeros(2), jnp.zeros(2, jnp.int32)
KEY = jax.random.key(0)


def level(**fields):
    return LEVEL._replace(**fields)


OF_IMAGES = {
    "denoising_loss of output": lambda w: diffusion.denoising_loss(w, X, X, LEVEL),
    "denoising_loss of x0": lambda w: diffusion.denoising_loss(X, w, X, LEVEL),
    "denoising_loss of eps": lambda w: diffusion.denoising_loss(X, X, w, LEVEL),
    "hybrid_loss of eps": lambda w: diffusion.hybrid_loss(CHAIN, jnp.zeros((2, 4, 4, 6)), X, w, T),
    "vb_term of x_t": lambda w: diffusion.vb_term(CHAIN, Denoised(X), X, w, T),
    "vb_term of predicted": lambda w: diffusion.vb_term(CHAIN, Denoised(w), X, X, T),
    "q_sample": lambda w: q_sample(X, w, LEVEL),
    "to_eps": lambda w: to_eps(w, X, LEVEL),
    "interpret": lambda w: interpret(EPS, w, X, LEVEL),
    "posterior_mean": lambda w: posterior_mean(Posterior(TWO, TWO, TWO, TWO), X, w),
    "gaussian_kl_to_standard": lambda w: vae.gaussian_kl_to_standard(X, w),
    "gaussian_kl_by_sample": lambda w: vae.gaussian_kl_by_sample(X, X, w),
    "perceptual_loss": lambda w: perceptual.perceptual_loss(X, w),
    "by_features": lambda w: perceptual.by_features(lambda p, x: x, ()).distance((), X, w),
    "by_lpips": lambda w: perceptual.by_lpips(lambda p, x: [x], (), [jnp.ones(3)]).distance(
        {"params": (), "weights": [jnp.ones(3)]}, X, w
    ),
    "lpips": lambda w: perceptual.lpips([X], [w], [jnp.ones(3)]),
    "commitment_loss": lambda w: vq.commitment_loss(X, w),
    "vector_quantization_loss": lambda w: vq.vector_quantization_loss(X, w),
    "gradient_penalty": lambda w: gan.gradient_penalty(lambda x: x.sum(axis=(1, 2, 3)), X, w, KEY),
    "discretized_logistic_sample": lambda w: logistic.discretized_logistic_sample(KEY, X, w),
    "discretized_logistic_mean": lambda w: logistic.discretized_logistic_mean(X, w),
    "discretized_logistic_mode": lambda w: logistic.discretized_logistic_mode(X, w),
    "gaussian": lambda w: likelihoods.gaussian().log_prob(w, X),
    "bernoulli": lambda w: likelihoods.bernoulli().log_prob(w, X),
}


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: str(w.shape))
def test_images_that_would_broadcast_are_refused(name, wrong):
    with pytest.raises(ValueError, match=r"(must|shape).*\("):
        OF_IMAGES[name](wrong)


OF_NUMBERS = {
    "denoising_loss of level": lambda: diffusion.denoising_loss(X, X, X, level(alpha=ONE)),
    "denoising_loss of time": lambda: diffusion.denoising_loss(X, X, X, level(time=T[:1])),
    "hybrid_loss of t": lambda: diffusion.hybrid_loss(CHAIN, jnp.zeros((2, 4, 4, 6)), X, X, T[:1]),
    "vb_term of t": lambda: diffusion.vb_term(CHAIN, Denoised(X), X, X, T[:1]),
    "q_sample of level": lambda: q_sample(X, X, level(sigma=ONE)),
    "ask of level": lambda: ask(lambda x, t, c: x, EPS, X, level(time=T[:1])),
    "interpret of level": lambda: interpret(EPS, X, X, level(alpha=ONE)),
    "to_eps of level": lambda: to_eps(X, X, level(sigma=jnp.float32(1))),
    "posterior_mean": lambda: posterior_mean(Posterior(ONE, TWO, TWO, TWO), X, X),
    "negative_elbo of kl": lambda: vae.negative_elbo(TWO, ONE),
    "negative_elbo of beta": lambda: vae.negative_elbo(TWO, TWO, TWO),
    "free_bits of weight": lambda: vae.free_bits(jnp.zeros((2, 3)), 0.1, ONE),
    "iwae_bound": lambda: vae.iwae_bound(TWO),
    "importance_bound": lambda: vae.importance_bound(lambda keys: TWO, KEY, 2, 2),
    "dreg_loss": lambda: vae.dreg_loss(lambda z: jnp.zeros((3, 1)), jnp.zeros((3, 2, 4))),
    "maximum_mean_discrepancy": lambda: vae.maximum_mean_discrepancy(X[0, 0], X[0, 0, :, :1]),
    "weighted_mean": lambda: reduce.weighted_mean(TWO, ONE),
    "weighted_sum": lambda: reduce.weighted_sum(TWO, jnp.zeros((2, 1))),
    "prior_log_prob": lambda: flow.prior_log_prob([jnp.zeros((2, 3)), jnp.zeros((1, 3))]),
    "negative_log_likelihood": lambda: flow.negative_log_likelihood(X, ONE),
    "dequantized_bound": lambda: flow.dequantized_bound(lambda x: (x, ONE), X, KEY),
    "dequantized_bound of latents": lambda: flow.dequantized_bound(lambda x: (x[:1], TWO), X, KEY),
    "hinge": lambda: gan.hinge.discriminator(TWO, ONE),
    "hinge of the generator": lambda: gan.hinge.generator(ONE, TWO),
    "discriminator_accuracy": lambda: gan.discriminator_accuracy(TWO, TWO, TWO),
    "consistency_penalty": lambda: gan.consistency_penalty(TWO, ONE),
    "auxiliary_classifier_loss": lambda: auxiliary.auxiliary_classifier_loss(
        jnp.zeros((2, 3)), T[:1]
    ),
    "auxiliary_attributes_loss": lambda: auxiliary.auxiliary_attributes_loss(
        jnp.zeros((2, 3)), jnp.zeros((1, 3), jnp.int32)
    ),
    "categorical_nll": lambda: autoregressive.categorical_nll(jnp.zeros((2, 3, 5)), T[:, None]),
    "mixture_of_logistics_nll": lambda: autoregressive.mixture_of_logistics_nll(
        jnp.zeros((2, 1, 10, 5)), X[:, 0]
    ),
    "mixture_of_logistics_log_prob": lambda: logistic.mixture_of_logistics_log_prob(
        jnp.zeros((10, 5)), X
    ),
    "categorical_log_prob": lambda: elementwise.categorical_log_prob(T, jnp.zeros((1, 3))),
    "gaussian_log_prob": lambda: elementwise.gaussian_log_prob(X, X[0], 0.0),
    "gaussian_kl": lambda: elementwise.gaussian_kl(X, 0.0, X[0], 0.0),
    "bernoulli_log_prob": lambda: elementwise.bernoulli_log_prob(X[0], X),
    "discretized_gaussian": lambda: elementwise.discretized_gaussian_log_prob(X, X[0], 0.0),
    "discretized_logistic": lambda: logistic.discretized_logistic_log_prob(X, 0.0, X[0]),
}


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numbers_that_would_broadcast_are_refused(name):
    with pytest.raises(ValueError, match=r"(must|shape).*\("):
        OF_NUMBERS[name]()
