"""Losses of vector quantization, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.losses.vq import commitment_loss, vector_quantization_loss


def test_vq_losses_by_hand_and_their_stops():
    encoded = jnp.array([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 3.0], [1.0, 1.0]]])  # [B, positions, D]
    quantized = jnp.zeros_like(encoded)
    want = [(1 + 4 + 0) / 2, (18 + 2) / 2]  # summed over D, averaged over positions
    for loss in (vector_quantization_loss, commitment_loss):
        np.testing.assert_allclose(loss(encoded, quantized), want)

    def gradients(loss):
        return jax.grad(lambda *a: loss(*a).sum(), argnums=(0, 1))(encoded, quantized)

    to_encoder, to_codes = gradients(vector_quantization_loss)
    np.testing.assert_array_equal(to_encoder, jnp.zeros_like(encoded))
    np.testing.assert_allclose(to_codes, -encoded)  # 2 (e - z_e) / positions
    to_encoder, to_codes = gradients(commitment_loss)
    np.testing.assert_array_equal(to_codes, jnp.zeros_like(encoded))
    np.testing.assert_allclose(to_encoder, encoded)
