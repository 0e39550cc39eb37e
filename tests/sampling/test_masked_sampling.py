"""Parallel decoding: the law of its samples where it is known, the numbers of its steps."""

import itertools
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.distributions.elementwise import NO_CLASS
from jaxgen.noise.masking import cosine, power
from jaxgen.sampling.masked import parallel_decode

# A Markov chain of three positions and two values, and the probabilities of all of its sequences.
FIRST, STEP = np.array([0.7, 0.3]), np.array([[0.9, 0.1], [0.35, 0.65]])
SEQUENCES = np.array(list(itertools.product(range(2), repeat=3)))
JOINT = FIRST[SEQUENCES[:, 0]] * STEP[SEQUENCES[:, 0], SEQUENCES[:, 1]]
JOINT = JOINT * STEP[SEQUENCES[:, 1], SEQUENCES[:, 2]]
DRAWN = 20_000
INDEPENDENT = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.05, 0.9, 0.05]])


def exact(codes, masked):
    """The logits of each position of the chain, given the codes that are not masked."""
    agrees = (masked[:, None] | (codes[:, None] == jnp.asarray(SEQUENCES)[None])).all(axis=2)
    weights = agrees * jnp.asarray(JOINT)[None]
    return jnp.log(jnp.einsum("bm,mnv->bnv", weights, jax.nn.one_hot(SEQUENCES, 2)))


def independent(codes, masked):
    return jnp.tile(jnp.log(INDEPENDENT)[None], (len(codes), 1, 1))


def law(choice_temperature):
    """Probabilities of the sequences that one code a step gives, by all ways there are.

    Of Gumbel noise of the size tau the greatest `log p + tau g` is that of i with a probability in
    proportion to p_i^(1 / tau).
    """

    @cache
    def given(known):
        agree = [all(k in (None, v) for k, v in zip(known, row, strict=True)) for row in SEQUENCES]
        weights = JOINT * agree / JOINT[agree].sum()
        return [weights @ (SEQUENCES[:, i] == v) for i in range(3) for v in range(2)]

    def chosen(p, tau):
        if tau is None:
            return np.full(len(p), 1 / len(p))
        if tau == 0:
            return np.eye(len(p))[np.argmax(p)]
        powers = np.array(p) ** (1 / tau)
        return powers / powers.sum()

    states = {(None,) * 3: 1.0}
    for step in (1, 2, 3):
        tau = None if choice_temperature is None else choice_temperature * (1 - step / 3)
        after = {}
        for known, weight in states.items():
            marginals, hidden = given(known), [i for i in range(3) if known[i] is None]
            for values in itertools.product(range(2), repeat=len(hidden)):
                p = [marginals[2 * i + v] for i, v in zip(hidden, values, strict=True)]
                for i, v, share in zip(hidden, values, chosen(p, tau), strict=True):
                    new = (*known[:i], v, *known[i + 1 :])
                    after[new] = after.get(new, 0.0) + weight * np.prod(p) * share
        states = after
    return np.array([states[tuple(row)] for row in SEQUENCES.tolist()])


def p_value(sequences, probabilities, values):
    """Of the chi-square test that sequences follow a law over all of them, in order."""
    sequences = np.asarray(sequences)
    number = sequences @ values ** np.arange(sequences.shape[1])[::-1]
    counts = np.bincount(number, minlength=len(probabilities))
    return stats.chisquare(counts, probabilities * len(sequences)).pvalue


@pytest.mark.parametrize("choice_temperature", [0.0, 0.6, 4.5, None])
def test_law_of_one_code_a_step(choice_temperature, key):
    """Every path counted; in random order it is the chain itself, else it is sharper."""
    options = {"choice_temperature": choice_temperature}
    drawn = jax.jit(lambda key: parallel_decode(exact, (DRAWN, 3), key, 3, **options))(key)
    expected = law(choice_temperature)
    assert expected.sum() == pytest.approx(1)
    assert p_value(drawn, expected, 2) > 1e-3
    if choice_temperature is None:
        np.testing.assert_allclose(expected, JOINT, rtol=1e-12)
    else:
        assert p_value(drawn, JOINT, 2) < 1e-6
        assert expected @ np.log(JOINT) > JOINT @ np.log(JOINT)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_law_of_independent_positions(num_steps, key):
    """In random order by any number of steps; where all are kept at once, by any temperature."""
    expected = np.array([np.prod(p) for p in itertools.product(*INDEPENDENT)])
    options = {"choice_temperature": 4.5 if num_steps == 1 else None}
    drawn = jax.jit(lambda key: parallel_decode(independent, (DRAWN, 4), key, num_steps, **options))
    assert p_value(drawn(key), expected, 3) > 1e-3


def test_law_of_what_is_completed(key):
    """The middle known, the chain's ends follow their conditionals."""
    given, known = jnp.ones((DRAWN, 3), jnp.int32), jnp.array([[False, True, False]] * DRAWN)
    options = {"choice_temperature": None, "given": given, "known": known}
    drawn = jax.jit(lambda key: parallel_decode(exact, (DRAWN, 3), key, 5, **options))(key)
    expected = np.where(SEQUENCES[:, 1] == 1, JOINT, 0)
    np.testing.assert_array_equal(drawn[:, 1], 1)
    ends = np.flatnonzero(expected)
    numbers = np.searchsorted(ends, np.asarray(drawn) @ [4, 2, 1])
    probabilities = expected[ends] / expected.sum()
    assert stats.chisquare(np.bincount(numbers), probabilities * DRAWN).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_temperature(temperature, key):
    options = {"temperature": temperature, "choice_temperature": None}
    drawn = jax.jit(lambda key: parallel_decode(independent, (5000, 4), key, 2, **options))(key)
    shares = np.mean(np.asarray(drawn)[..., None] == np.arange(3), axis=0)
    likeliest = INDEPENDENT.argmax(axis=1)
    sharpened = np.square(INDEPENDENT) / np.square(INDEPENDENT).sum(axis=1, keepdims=True)
    expected = sharpened if temperature else np.eye(3)[likeliest]
    np.testing.assert_allclose(shares, expected, atol=0.02)


def recorded(shape, num_steps, key, **options):
    """The masks before each step, the logits of what was drawn there, and the codes at last."""
    masks, codes_before = [], []
    table = jax.random.normal(jax.random.key(1), (*shape, 5))

    def predict(codes, masked):
        masks.append(np.asarray(masked))
        codes_before.append(np.asarray(codes))
        return table

    with jax.disable_jit():
        codes = parallel_decode(predict, shape, key, num_steps, **options)
    return np.array(masks), np.array(codes_before), np.asarray(codes), np.asarray(table)


@pytest.mark.parametrize(
    ("schedule", "by_schedule"),
    [(cosine, [12, 11, 10, 8, 6, 3]), (power(1.0), [12, 10, 8, 6, 4, 2])],
)
def test_numbers_that_stay_masked(schedule, by_schedule, key):
    """Of each example its own, exactly, whatever is known of it; what is kept stays."""
    unknown = np.array([12, 7, 1, 0])
    known = jnp.asarray(np.arange(12)[None] >= unknown[:, None])
    given = jax.random.randint(key, known.shape, 0, 5)
    options = {"schedule": schedule, "given": given, "known": known}
    masks, before, codes, _ = recorded((4, 12), 6, key, **options)
    counts = masks.sum(axis=2)
    np.testing.assert_array_equal(counts[0], unknown)
    by_schedule = {cosine: [12, 11, 10, 8, 6, 3], power: [12, 10, 8, 6, 4, 2]}
    np.testing.assert_array_equal(
        counts[:, 0], by_schedule[cosine if schedule is cosine else power]
    )
    np.testing.assert_array_equal(counts[1:, 2:], 0)
    assert (counts[1:, 1] < counts[:-1, 1]).all()
    assert (masks[1:] <= masks[:-1]).all()
    for mask, values in zip(masks, before, strict=True):
        np.testing.assert_array_equal(values[~mask], codes[~mask])
    np.testing.assert_array_equal(codes[np.asarray(known)], given[known])


def test_without_noise_the_surest_are_kept(key):
    masks, before, _, table = recorded((3, 10), 4, key, choice_temperature=0.0)
    log_p = np.asarray(jax.nn.log_softmax(table))
    for mask, after, values in zip(masks[:-1], masks[1:], before[1:], strict=True):
        sureness = np.take_along_axis(log_p, values[..., None], axis=2)[..., 0]
        for row in range(3):
            kept, left = mask[row] & ~after[row], after[row]
            assert sureness[row][kept].min() > sureness[row][left].max()


def test_one_loop(key):
    """The model is traced once, for all steps."""
    calls = []

    def predict(codes, masked):
        calls.append(1)
        return independent(codes, masked)

    program = jax.jit(lambda key: parallel_decode(predict, (2, 4), key, 4))
    program(key)
    assert len(calls) == 1


def test_logits_that_are_nan_draw_no_class(key):
    def predict(codes, masked):
        return independent(codes, masked).at[1].set(jnp.nan)

    codes = jax.jit(lambda key: parallel_decode(predict, (2, 4), key, 3))(key)
    np.testing.assert_array_equal(codes == NO_CLASS, [[False] * 4, [True] * 4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, got -1.0"),
        ({"choice_temperature": -1.0}, "must be at least 0 and finite, or None, got -1.0"),
        ({"choice_temperature": math.inf}, "must be at least 0 and finite, or None, got inf"),
        ({"known": jnp.ones((2, 4), bool)}, "given and known must be given together"),
        (
            {"given": jnp.zeros((2, 3), jnp.int32), "known": jnp.ones((2, 4), bool)},
            r"given must have the shape \(2, 4\), got \(2, 3\)",
        ),
    ],
)
def test_bad_input(options, message, key):
    with pytest.raises(ValueError, match=message):
        parallel_decode(independent, (2, 4), key, **{"num_steps": 2, **options})
