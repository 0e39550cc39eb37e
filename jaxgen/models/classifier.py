"""A small convolutional classifier of small images; its last hidden layer serves as features."""

import flax.linen as nn
from jaxtyping import Array, Float

from jaxgen.models.conv.layers import Conv

MIN_SIZE, MAX_SIZE = 4, 128


class SmallClassifier(nn.Module):
    """3x3 convolutions down to at most 8 pixels a side, one dense layer, and the logits.

    Attributes:
        num_classes: Number of classes, or of attributes.
        num_features: Width of the last hidden layer.
        channels: Channels of the first convolution; the others have twice as many.
    """

    num_classes: int
    num_features: int = 64
    channels: int = 32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """Features (after their ReLU) and logits of images in model space, [-1, 1].

        Raises:
            ValueError: Images smaller than 4 or larger than 128 pixels a side.
        """
        size = image.shape[1:3]
        if min(size) < MIN_SIZE or max(size) > MAX_SIZE:
            raise ValueError(
                f"image must be from {MIN_SIZE} to {MAX_SIZE} pixels a side, got {size}"
            )
        x = nn.relu(Conv(self.channels, (3, 3))(image))
        x = nn.relu(Conv(2 * self.channels, (3, 3), strides=(2, 2))(x))
        while max(x.shape[1:3]) > 8:
            x = nn.relu(Conv(2 * self.channels, (3, 3), strides=(2, 2))(x))
        features = nn.relu(nn.Dense(self.num_features)(x.reshape(len(x), -1)))
        return features, nn.Dense(self.num_classes)(features)
