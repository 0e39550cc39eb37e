"""Captions as tokens: bytes, words or byte pairs, by the `tokenizers` library.

A `Tokenizer` turns captions into rows of one length. What is too long is cut, and counted; what is
short is padded with `PAD`, which no token of a caption is, so that `ids != PAD` is the mask.
"""

import difflib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from jaxgen.data.captions import decode_text
from jaxgen.data.joined import Joined
from jaxgen.data.sources import Source
from jaxgen.data.sources import decode as decode_all
from jaxgen.files import open_atomically

PAD, UNKNOWN = 0, 1
SPECIAL = ("[PAD]", "[UNK]")
_UNKNOWN = (SPECIAL[UNKNOWN], "<unk>", "<UNK>")
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


class Tokenizer(NamedTuple):
    """A way to cut captions into tokens.

    Attributes:
        model: The library's tokenizer.
        length: Number of tokens of a row.
    """

    model: tokenizers.Tokenizer
    length: int

    @property
    def num_tokens(self) -> int:
        """Number of different tokens, `PAD` and `UNKNOWN` among them."""
        return int(self.model.get_vocab_size())


class Tokens(NamedTuple):
    """Captions as rows of tokens.

    Attributes:
        ids: The tokens, int32 [N, length], `PAD` after the last one.
        num_cut: Number of captions that were longer.
    """

    ids: Int[np.ndarray, "num length"]
    num_cut: int


def by_bytes(length: int) -> Tokenizer:
    """Each byte of the UTF-8 form is a token: 256 of them, nothing is unknown.

    Args:
        length: Number of tokens of a row, at least 1.

    Raises:
        ValueError: A length below 1.
    """
    vocabulary = {name: i for i, name in enumerate([*SPECIAL, *_BYTES])}
    return _byte_pairs(models.BPE(vocab=vocabulary, merges=[]), length)


def by_words(captions: Iterable[str], length: int, *, most: int = 30_000) -> Tokenizer:
    """Each word, in lower case, and each mark of punctuation is a token; others are `UNKNOWN`.

    Args:
        captions: Captions whose words are known.
        length: Number of tokens of a row, at least 1.
        most: Greatest number of tokens, the most frequent words first.

    Raises:
        ValueError: No captions, a length below 1 or too few tokens.
    """
    model = tokenizers.Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
    model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _check_most(most, len(SPECIAL) + 1)
    trainer = trainers.WordLevelTrainer(vocab_size=most, special_tokens=list(SPECIAL))
    return Tokenizer(_trained(model, captions, trainer), _checked(length))


def by_pairs(captions: Iterable[str], length: int, *, most: int = 1000) -> Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016): bytes, and what most often stands together.

    Args:
        captions: Captions from which the pairs are learned.
        length: Number of tokens of a row, at least 1.
        most: Number of tokens, at least 258, of which 256 are the bytes.

    Raises:
        ValueError: No captions, a length below 1 or too few tokens.
    """
    tokenizer = _byte_pairs(models.BPE(), length)
    _check_most(most, len(SPECIAL) + len(_BYTES))
    trainer = trainers.BpeTrainer(
        vocab_size=most,
        special_tokens=list(SPECIAL),
        initial_alphabet=_BYTES,
        show_progress=False,
    )
    return tokenizer._replace(model=_trained(tokenizer.model, captions, trainer))


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes a tokenizer as the library's `tokenizer.json`, replacing the file at once.

    Args:
        tokenizer: The tokenizer, whose length is not in the file.
        path: Path of the file.
    """
    with open_atomically(path) as file:
        file.write(content_of(tokenizer))


def content_of(tokenizer: Tokenizer) -> bytes:
    """What `save` writes."""
    return str(tokenizer.model.to_str(pretty=True)).encode()


def read(path: str | Path, length: int) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, ours or a pretrained one.

    Args:
        path: Path of the file.
        length: Number of tokens of a row, at least 1.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no tokenizer, or one whose token 0 is not for padding; names it.
    """
    return parse(Path(path).read_bytes(), length, str(path))


def parse(content: bytes, length: int, name: str = "content") -> Tokenizer:
    """The tokenizer that the content of a `tokenizer.json` is.

    Args:
        content: Content of the file.
        length: Number of tokens of a row, at least 1.
        name: Name of the file in error messages.

    Raises:
        ValueError: Content that is no tokenizer, or one whose token 0 is not for padding.
    """
    try:
        model = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{name} cannot be read as a tokenizer.json: {error}") from error
    if model.id_to_token(PAD) not in (SPECIAL[PAD], "<pad>", "<PAD>", "<|pad|>"):
        raise ValueError(
            f"{name}: the token 0 must stand for padding, such as {SPECIAL[PAD]!r}, got "
            f"{model.id_to_token(PAD)!r}"
        )
    model.no_padding()
    model.no_truncation()
    return Tokenizer(model, _checked(length))


def encode(tokenizer: Tokenizer, captions: Sequence[str]) -> Tokens:
    """Captions as rows of tokens.

    Args:
        tokenizer: The tokenizer.
        captions: The captions.

    Raises:
        ValueError: A caption without a token, an empty one say; names its number.
    """
    ids = np.full((len(captions), tokenizer.length), PAD, np.int32)
    num_cut = 0
    for row, encoding in enumerate(tokenizer.model.encode_batch(list(captions))):
        if not encoding.ids:
            raise ValueError(f"caption {row} must not be empty, got {captions[row]!r}")
        kept = encoding.ids[: tokenizer.length]
        num_cut += len(encoding.ids) > tokenizer.length
        ids[row, : len(kept)] = kept
    return Tokens(ids, num_cut)


def captions_of(source: Source) -> list[tuple[str, ...]]:
    """The captions of each example.

    Args:
        source: Source with `text` in UTF-8; of one in memory nothing else is read.

    Raises:
        ValueError: A source without captions.
    """
    if "text" not in source.spec:
        raise ValueError(f"{source.name} has no captions: its entries are {sorted(source.spec)}")
    arrays = getattr(source, "arrays", {})
    return decode_text(arrays["text"] if "text" in arrays else decode_all(source).arrays["text"])


class Tokenized(Joined):
    """A source's captions as tokens: `text` is int32 [N, captions, length], padded with `PAD`.

    Captions that are too long are cut; a warning counts them.

    Args:
        source: Source with `text` in UTF-8.
        tokenizer: The tokenizer.

    Attributes:
        tokenizer: The tokenizer.

    Raises:
        ValueError: A source without captions, or a caption without a token.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer):
        captions = captions_of(source)
        ids, num_cut = encode(tokenizer, [one for each in captions for one in each])
        if num_cut:
            warnings.warn(
                f"{source.name}, split {source.split}: {num_cut} of {len(ids)} captions have more "
                f"than {tokenizer.length} tokens and are cut",
                stacklevel=2,
            )
        counts = np.array([len(each) for each in captions])
        text = np.full((len(captions), counts.max(initial=0), tokenizer.length), PAD, np.int32)
        text[np.arange(text.shape[1]) < counts[:, None]] = ids
        super().__init__(source, {"text": text})
        self.tokenizer = tokenizer


def encode_known(tokenizer: Tokenizer, captions: Sequence[str]) -> Int[np.ndarray, "num length"]:
    """Captions that people ask for, as rows of tokens.

    Args:
        tokenizer: The tokenizer.
        captions: The captions.

    Raises:
        ValueError: A caption that is empty, too long, or has a word that the tokenizer does not
            know; says which words are near.
    """
    vocabulary = tokenizer.model.get_vocab()
    for caption, encoding in zip(
        captions, tokenizer.model.encode_batch(list(captions)), strict=True
    ):
        if len(encoding.ids) > tokenizer.length:
            raise ValueError(
                f"text must have at most {tokenizer.length} tokens, got {len(encoding.ids)} in "
                f"{caption!r}"
            )
        for token, (begin, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if token in _UNKNOWN:
                word = caption[begin:end]
                near = difflib.get_close_matches(word.lower(), vocabulary, n=3, cutoff=0.5)
                hint = f"; near are {', '.join(map(repr, near))}" if near else ""
                raise ValueError(f"text has a word that the model does not know, {word!r}{hint}")
    return encode(tokenizer, captions).ids


def decode(tokenizer: Tokenizer, ids: Int[np.ndarray, "num length"]) -> list[str]:
    """The captions that tokens stand for, as near as the tokenizer keeps them.

    Args:
        tokenizer: The tokenizer.
        ids: Rows of tokens.
    """
    return [
        str(tokenizer.model.decode([int(i) for i in row if i != PAD], skip_special_tokens=False))
        for row in ids
    ]


def _byte_pairs(model: Any, length: int) -> Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Tokenizer(tokenizer, _checked(length))


def _trained(model: Any, captions: Iterable[str], trainer: Any) -> tokenizers.Tokenizer:
    captions = list(captions)
    if not captions:
        raise ValueError("captions must not be empty")
    model.train_from_iterator(captions, trainer)
    return model


def _checked(length: int) -> int:
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    return length


def _check_most(most: int, least: int) -> None:
    if most < least:
        raise ValueError(f"most must be at least {least}, got {most}")
