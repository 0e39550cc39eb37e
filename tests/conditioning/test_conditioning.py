"""Conditions become vectors, alike for classes, attributes and embeddings; bad ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning import base
from jaxgen.conditioning.attributes import attributes, embeddings
from jaxgen.conditioning.base import Condition, vector_conditioning
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables

NOTHING = Variables({})


def test_labels_are_one_hot():
    classes = labels(3)
    condition = classes.encode(NOTHING, jnp.array([2, 0]))
    np.testing.assert_array_equal(condition.vector, [[0, 0, 1], [1, 0, 0]])
    assert (condition.tokens, condition.mask) == (None, None)
    assert (classes.key, classes.width, classes.shape) == ("label", 3, ())
    assert classes.num_classes == 3
    np.testing.assert_array_equal(classes.sweep, [0, 1, 2])


def test_attributes_are_signs():
    two = attributes(2)
    encoded = two.encode(NOTHING, jnp.array([[1, 0]])).vector
    np.testing.assert_array_equal(encoded, [[1, -1]])
    assert (two.key, two.width, two.shape, two.num_classes) == ("attributes", 2, (2,), None)
    assert (two.num_attributes, labels(3).num_attributes) == (2, None)
    np.testing.assert_array_equal(two.sweep, [[0, 0], [1, 0], [0, 1]])


def test_a_sweep_of_attributes_that_occur():
    """Two colours, of which each example has one, and two more: the most usual example, and of
    each attribute the nearest that has it; one that no example has is added."""
    examples = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0]])
    kind = attributes(4, ("red", "blue", "glasses", "beard"), examples)
    np.testing.assert_array_equal(
        kind.sweep, [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    )
    np.testing.assert_array_equal(kind.examples, examples)
    with pytest.raises(ValueError, match=r"examples must have the shape \[B, 4\], got \[2, 3\]"):
        attributes(4, (), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"examples must lie in 0\.\.1"):
        attributes(2, (), np.array([[0, 2]]))


def test_what_is_encoded_passes():
    """Between two conditions, straight; texts have nothing between them."""
    kind = labels(2)
    start, end = (kind.encode(NOTHING, jnp.array([label])) for label in (0, 1))
    path = base.between(start, end, 3)
    np.testing.assert_allclose(path.vector[:, 0], [[1, 0], [0.5, 0.5], [0, 1]])
    condition = jax.tree.map(lambda x: x[1], path)
    assert base.encode(kind, NOTHING, condition) is condition
    masked = Condition(None, jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match="must have no mask"):
        base.between(masked, masked, 3)


def test_embeddings_pass():
    x = jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)
    conditioning = embeddings(3)
    encoded = conditioning.encode(NOTHING, x).vector
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, x.astype(jnp.float32))
    assert (conditioning.key, conditioning.shape, conditioning.sweep) == ("embedding", (3,), None)


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        (labels(3), [0, 3]),
        (labels(3), [-1, 0]),
        (attributes(2), [[0, 1], [2, 0]]),
    ],
)
def test_values_out_of_range(kind, condition):
    """Known values raise; traced ones give NaN for that example alone."""
    with pytest.raises(ValueError, match="must lie in"):
        kind.encode(NOTHING, jnp.array(condition))
    encoded = jax.jit(kind.encode)(NOTHING, jnp.array(condition)).vector
    bad = np.isnan(encoded).any(axis=1)
    assert bad.sum() == 1


@pytest.mark.parametrize(
    ("kind", "condition", "message"),
    [
        (labels(3), jnp.zeros((2, 3), jnp.int32), "must be integers"),
        (labels(3), jnp.zeros(2), "must be integers"),
        (attributes(2), jnp.zeros((4, 3)), r"shape \[B, 2\], got \[4, 3\]"),
        (embeddings(5), jnp.zeros((4, 3)), r"shape \[B, 5\], got \[4, 3\]"),
        (None, jnp.zeros(2), "must be None"),
        (labels(3), None, "must be given"),
    ],
)
def test_bad_conditions(kind, condition, message):
    with pytest.raises(ValueError, match=message):
        base.encode(kind, NOTHING, condition)


@pytest.mark.parametrize("make", [labels, attributes, embeddings])
def test_bad_sizes(make):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make(0)


def test_a_condition_and_none():
    assert base.encode(None, NOTHING, None) is None
    vector = base.encode(labels(2), NOTHING, jnp.array([1])).vector
    np.testing.assert_array_equal(vector, [[0, 1]])


def test_a_batch_has_its_conditions():
    batch = {"image": jnp.zeros((2, 4)), "label": jnp.array([1, 0])}
    encoded = base.encode_batch(labels(2), NOTHING, batch)
    np.testing.assert_array_equal(encoded.vector, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(base.condition_of(labels(2), batch), batch["label"])
    assert base.encode_batch(None, NOTHING, batch) is None
    assert base.condition_of(None, batch) is None
    for read in (base.condition_of, lambda kind, b: base.encode_batch(kind, NOTHING, b)):
        with pytest.raises(
            ValueError, match=r"condition 'attributes', it has \['image', 'label'\]"
        ):
            read(attributes(2), batch)
    assert [base.key_of(kind) for kind in (None, labels(2))] == [None, "label"]


@pytest.mark.parametrize("kind", [labels(3), attributes(3), embeddings(3)])
def test_null_is_zeros_of_the_same_shape(kind):
    """No vector that a condition can have, but for embeddings, where any vector may come."""
    null = kind.null(NOTHING, 2)
    np.testing.assert_array_equal(null.vector, np.zeros((2, 3)))
    if kind.sweep is not None:
        encoded = kind.encode(NOTHING, jnp.asarray(kind.sweep))
        assert jnp.abs(encoded.vector).sum(axis=1).min() > 0
    assert jax.tree.structure(null) == jax.tree.structure(Condition(jnp.zeros(1)))


def sequence(num, value):
    """A condition of a vector, three tokens and their mask."""
    return Condition(
        jnp.full((num, 2), value), jnp.full((num, 3, 4), value), jnp.full((num, 3), value > 0)
    )


def test_drop(key):
    """With a probability, all parts of an example's condition alike, by the key alone."""
    num = 4000
    given, null = sequence(num, 1.0), sequence(num, 0.0)
    dropped = jax.jit(base.drop, static_argnums=3)(key, given, null, 0.3)
    gone = np.asarray(dropped.vector)[:, 0] == 0
    assert abs(gone.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / num)
    for part, whole in zip(dropped, given, strict=True):
        where = gone.reshape(num, *(1,) * (part.ndim - 1))
        np.testing.assert_array_equal(part, np.where(where, 0, whole))
    again = base.drop(key, given, null, 0.3)
    np.testing.assert_array_equal(again.vector, dropped.vector)
    other = base.drop(jax.random.key(1), given, null, 0.3)
    assert not np.array_equal(other.vector, dropped.vector)


def test_drop_never_and_always(key):
    given, null = sequence(8, 1.0), sequence(8, 0.0)
    for probability, expected in ((0.0, given), (1.0, null)):
        jax.tree.map(
            np.testing.assert_array_equal, base.drop(key, given, null, probability), expected
        )
    for probability in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\]"):
            base.drop(key, given, null, probability)


def test_repeat():
    """One after another, as a batch that is repeated by `jnp.repeat`."""
    condition = Condition(jnp.array([[1.0], [2.0]]), jnp.arange(2.0).reshape(2, 1, 1))
    repeated = base.repeat(condition, 2)
    np.testing.assert_array_equal(repeated.vector[:, 0], [1, 1, 2, 2])
    np.testing.assert_array_equal(repeated.tokens[:, 0, 0], [0, 0, 1, 1])
    assert repeated.mask is None
    assert base.repeat(None, 2) is None


def test_vector_of():
    vector = jnp.ones((2, 3))
    assert base.vector_of(Condition(vector)) is vector
    assert base.vector_of(None) is None
    for condition in (sequence(2, 1.0), Condition(None, jnp.zeros((2, 3, 4)))):
        with pytest.raises(ValueError, match="takes no tokens"):
            base.vector_of(condition)


def test_encoders_that_are_trained_or_fixed(key):
    """Trained ones bring parameters and are named to the optimizer; fixed ones bring arrays."""

    def embed(variables, values):
        return Condition(variables.params[base.NAME]["table"][values])

    trained = labels(3)._replace(
        encode=embed, init=lambda key: {"table": jax.random.normal(key, (3, 2))}, trained=True
    )
    params = base.init(trained, key)
    assert base.trains(trained) == (base.NAME,)
    assert base.fixed(trained) == {}
    encoded = base.encode(trained, Variables(params), jnp.array([2]))
    np.testing.assert_array_equal(encoded.vector[0], params[base.NAME]["table"][2])
    pretrained = labels(3)._replace(fixed={"table": jnp.eye(3)})
    assert set(base.fixed(pretrained)) == {base.NAME}
    for plain in (None, labels(3)):
        assert (base.init(plain, key), base.trains(plain), base.fixed(plain)) == ({}, (), {})


def test_a_conditioning_of_ones_own():
    """`vector_conditioning` makes one of any function."""
    angle = vector_conditioning("angle", (), 2, lambda a: jnp.stack([jnp.cos(a), jnp.sin(a)], 1))
    batch = {"angle": jnp.array([0.0, np.pi / 2])}
    encoded = base.encode_batch(angle, NOTHING, batch).vector
    np.testing.assert_allclose(encoded, [[1, 0], [0, 1]], atol=1e-6)
    assert angle.null(NOTHING, 3).vector.shape == (3, 2)
    assert (angle.sweep, angle.num_classes) == (None, None)


@pytest.mark.parametrize(("num_classes", "dtype"), [(256, "uint8"), (200, "int8"), (300, "uint8")])
def test_labels_of_few_bits(num_classes, dtype):
    """Compared as bytes, class 256 is class 0: two ones in a row, or none."""
    vector = labels(num_classes).encode(Variables({}), jnp.array([0, 100], dtype)).vector
    np.testing.assert_array_equal(vector, np.eye(num_classes)[[0, 100]])


@pytest.mark.parametrize("trained", [True, False])
def test_an_encoder_frozen(trained):
    """What a trained model's encoder reads, its parameters or its arrays, is read from `fixed`."""
    table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    arrays = {base.NAME: {"table": table}}
    place = "params" if trained else "fixed"

    def encode(variables, values):
        return Condition(getattr(variables, place)[base.NAME]["table"][values])

    def null(variables, num):
        return Condition(getattr(variables, place)[base.NAME]["table"][:num] + 9)

    kind = labels(2)._replace(
        encode=encode,
        null=null,
        init=lambda key: {"table": 0 * table},
        trained=trained,
        fixed={} if trained else {"table": table},
    )
    still = base.frozen(kind, Variables(arrays if trained else {}, {}, {} if trained else arrays))
    assert not still.trained
    assert base.init(still, jax.random.key(0)) == {}
    variables = Variables({}, {}, base.fixed(still))
    np.testing.assert_array_equal(still.encode(variables, jnp.array([1])).vector, table[1:])
    np.testing.assert_array_equal(still.null(variables, 1).vector, table[:1] + 9)


def test_nothing_to_freeze():
    classes = labels(2)
    assert base.frozen(classes, NOTHING) is classes
