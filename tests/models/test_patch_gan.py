"""PatchGAN: the published counts, what a verdict sees, and its statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.patch_gan import PatchDiscriminator


# The authors' own modules, counted: pix2pix's has 6 channels, an image and what it is made of.
@pytest.mark.parametrize(
    ("num_layers", "channels", "side", "count"),
    [(3, 3, 30, 2_765_633), (2, 3, 62, 663_361), (3, 6, 30, 2_768_705)],
)
def test_published_sizes(key, num_layers, channels, side, count):
    network = PatchDiscriminator(num_layers=num_layers)
    logits, variables = jax.eval_shape(
        lambda x: network.init_with_output(key, x, train=True), jnp.zeros((2, 256, 256, channels))
    )
    assert (logits.shape, logits.dtype) == ((2, side, side), jnp.float32)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_a_verdict_sees_its_patch(key):
    """70x70 pixels with three layers, 34x34 with two, 16x16 with one."""
    network = PatchDiscriminator(2, 1)
    x = jax.random.normal(key, (1, 24, 24, 1))
    variables = network.init(key, x, train=False)
    middle = lambda x: network.apply(variables, x, train=False)[0, 5, 5]  # noqa: E731
    seen = np.argwhere(np.asarray(jax.jit(jax.grad(middle))(x))[0, ..., 0])
    assert tuple(np.ptp(seen, axis=0) + 1) == (16, 16)


def test_it_normalizes_by_the_batch_in_training(key):
    network = PatchDiscriminator(2, 1, momentum=0.5)
    x = jax.random.normal(key, (3, 6, 6, 1))
    variables = network.init(key, x, train=True)

    @partial(jax.jit, static_argnums=1)
    def call(x, train):
        return network.apply(variables, x, train=train, mutable=["batch_stats"])

    (logits, changed), (moved, _) = call(x, True), call(x.at[0].add(3.0), True)
    assert logits.shape == (3, 1, 1)
    assert not np.allclose(logits[1:], moved[1:], rtol=1e-4)  # others' verdicts, too
    before, after = (v["batch_stats"]["norm1"]["norm"] for v in (variables, changed))
    assert not np.allclose(before["var"], after["var"])
    np.testing.assert_allclose(call(x, False)[0][1:], call(x.at[0].add(3.0), False)[0][1:])


def test_bad_input(key):
    with pytest.raises(ValueError, match="3 layers judge images of 24 pixels and more.* 24x23"):
        jax.eval_shape(
            lambda x: PatchDiscriminator().init(key, x, train=True), jnp.zeros((1, 24, 23, 3))
        )
    with pytest.raises(ValueError, match="num_layers must be positive, got 0"):
        PatchDiscriminator(num_layers=0)
    with pytest.raises(ValueError, match="channels must be positive, got 0"):
        PatchDiscriminator(0)
