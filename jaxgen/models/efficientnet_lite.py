"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Tan and Le 2019).

The batch normalizations are folded into the convolutions before them, so this is a network for
inference only.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxgen.models.conv.layers import Conv

SIZE = 224
NUM_FEATURES = 1280
NUM_CLASSES = 1000
# (blocks, kernel, stride of the first, expansion, features): table 1 of the paper
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Pooled features and ImageNet logits."""

    @nn.compact
    def __call__(self, image: Float[Array, "batch 224 224 3"]) -> dict[str, Array]:
        """Runs the network.

        Args:
            image: `(v - 127) / 128` of bytes v.

        Returns:
            `features` f32[B, 1280], averages after a ReLU6, and `logits` f32[B, 1000].
        """
        x = nn.relu6(Conv(32, (3, 3), (2, 2), name="stem")(image))
        index = 0
        for blocks, kernel, stride, expansion, features in STAGES:
            for block in range(blocks):
                step = stride if block == 0 else 1
                name = f"block{index}"
                x = InvertedBottleneck(features, kernel, step, expansion, name=name)(x)
                index += 1
        x = nn.relu6(Conv(NUM_FEATURES, (1, 1), name="head")(x))
        pooled = x.mean(axis=(1, 2))
        return {"features": pooled, "logits": nn.Dense(NUM_CLASSES, name="classes")(pooled)}


class InvertedBottleneck(nn.Module):
    """1x1 to more channels, depthwise, 1x1 to fewer; added to the input where shapes agree.

    Attributes:
        features: Channels of the output.
        kernel: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        expansion: Channels within, as a multiple of the input's.
    """

    features: int
    kernel: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = nn.relu6(Conv(wide, (1, 1), name="expand")(y))
        depthwise = Conv(
            wide,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            feature_group_count=wide,
            name="depthwise",
        )
        y = Conv(self.features, (1, 1), name="project")(nn.relu6(depthwise(y)))
        return x + y if y.shape == x.shape and self.stride == 1 else y
