"""Calibration text: which tokens the model is run over, and a digest that says so."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcbench.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mcbench.model import MoEModel

SAMPLES = 64
LENGTH = 512
MOST_TOKENS = 100_000_000  # a thousand times what papers calibrate on
SUFFIXES = (".txt", ".jsonl", ".json")
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading, trailing and   repeated spaces \t tab\nline\n\nlines\r\n ",
    "CamelCase snake_case don't I'LL 3.14159 1234567890 1,000 $5 50% a+b=c x**2 https://example.org/?q=1#a",
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \ufb01ne \uff21\uff22 na\u00efve Stra\u00dfe \u0130stanbul",
    "\u65e5\u672c\u8a9e \u4e2d\u6587 \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629"
    " \u03b1\u03b2 \u0416\u044f \U0001f600\u200d\U0001f680",
    "def f(x):\n    return {'a': [x, None]}  # comment\n",
)  # sentences in which tokenizers differ: case, spaces, digits, accents, scripts, code


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Token blocks of equal length: S sequences of T tokens.

    input_ids: [S, T] int64. attention_mask: [S, T] int64, 1 for a real token and 0 for padding, which never counts.
    source: where the text came from, for people.
    """

    input_ids: Tensor
    attention_mask: Tensor
    source: str

    @property
    def tokens(self) -> int:
        """How many real tokens there are."""
        return int(self.attention_mask.sum())

    @property
    def digest(self) -> str:
        """sha256 of shape, ids and mask: equal digests mean equal calibration input."""
        content = hashlib.sha256(repr(tuple(self.input_ids.shape)).encode())
        for part in (self.input_ids, self.attention_mask):
            content.update(part.to(torch.int64).contiguous().numpy().tobytes())
        return content.hexdigest()

    def head(self, sequences: int, length: int) -> CalibrationData:
        """The first `length` tokens of the first `sequences` sequences."""
        return CalibrationData(
            self.input_ids[:sequences, :length], self.attention_mask[:sequences, :length], self.source
        )

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids and mask of `size` sequences at a time."""
        yield from zip(self.input_ids.split(size), self.attention_mask.split(size), strict=True)


def calibration_data(
    model: MoEModel,
    source: str | Path | None = None,
    *,
    samples: int = SAMPLES,
    length: int | None = None,
    seed: int = 0,
) -> CalibrationData:
    """`samples` blocks of `length` tokens of the text in `source`, for the tokenizer of `model`.

    source: None for the text of the embedded reference world, else a .txt file (one document), a .jsonl file with a
    "text" in each line, or a .json list of strings or of objects with a "text".
    length: 512 by default, or the model's context where that is shorter.
    seed: the order of the documents, and which blocks are taken where there are more than needed.

    Every document opens with the tokenizer's BOS token (EOS where it has none); all are joined and cut into blocks
    without padding, as GPTQ and MC-MoE do. Raises BadInput for a missing, empty, unreadable or too short text and for a
    model without a tokenizer.
    """
    tokenizer = model.tokenizer  # BadInput where there is none
    if samples * (length or LENGTH) > MOST_TOKENS:
        raise BadInput(f"{samples} calibration samples are more than {MOST_TOKENS:,} tokens; ask for fewer")
    if samples < 1:
        raise BadInput(f"{samples} calibration samples cannot calibrate anything; ask for at least 1")
    context = getattr(model.model.config.get_text_config(), "max_position_embeddings", None) or LENGTH
    if length is None:
        length = min(LENGTH, context)
    if not 2 <= length <= context:
        raise BadInput(f"a calibration length of {length} tokens does not fit the model; choose 2 to {context}")
    name = "reference" if source is None else str(source)
    needed = samples * length
    ids: list[int] = []
    for text in _reference_texts(seed) if source is None else _file_texts(Path(source), seed):
        ids.extend(_encode(tokenizer, text))
        if len(ids) >= needed:
            break
    if not ids:
        raise BadInput(f"the calibration text {name!r} is empty; give text of at least {needed:,} tokens")
    blocks = len(ids) // length
    if blocks < samples:
        fewer = f", or ask for at most {blocks} samples" if blocks else ""
        raise BadInput(
            f"the calibration text {name!r} has {len(ids):,} tokens and {needed:,} are needed "
            f"({samples} samples of {length}); give more text{fewer}"
        )
    chosen = sorted(random.Random(seed).sample(range(blocks), samples))
    input_ids = torch.tensor([ids[b * length : (b + 1) * length] for b in chosen], dtype=torch.int64)
    return CalibrationData(input_ids, torch.ones_like(input_ids), name)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return ids if start is None or ids[:1] == [start] else [start, *ids]


def _reference_texts(seed: int) -> Iterator[str]:
    """Documents of the reference world, as many as the reader asks for."""
    from mcbench.reference import calibration_text

    read, documents = 0, 256
    while True:
        texts = calibration_text(documents, seed)
        yield from texts[read:]
        read, documents = len(texts), documents * 4


def _file_texts(path: Path, seed: int) -> Sequence[str]:
    """The documents of a file that hold anything but white space, in an order that `seed` decides."""
    if path.suffix not in SUFFIXES:
        raise BadInput(f"{str(path)!r} is no calibration text; give a file ending in {', '.join(SUFFIXES)}")
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"there is no calibration text at {str(path)!r}; check the path") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{str(path)!r} is not UTF-8 (byte {error.start}); convert it first") from None
    except OSError as error:
        raise BadInput(f"{str(path)!r} cannot be read: {error.strerror}; check the path") from None
    texts = [text for text in _documents(path, content) if text.strip()]
    random.Random(seed).shuffle(texts)
    return texts


def _documents(path: Path, content: str) -> list[str]:
    if path.suffix == ".txt" or not content.strip():
        return [content]
    try:
        if path.suffix == ".json":
            rows = json.loads(content)
        else:
            rows = [json.loads(line) for line in content.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{str(path)!r} is not valid {path.suffix[1:]}: {error}; repair it") from None
    texts = []
    for number, row in enumerate(rows if isinstance(rows, list) else [None], start=1):
        text = row.get("text") if isinstance(row, dict) else row
        if not isinstance(text, str):
            raise BadInput(f'entry {number} of {str(path)!r} is no text; give strings or objects with a "text"')
        texts.append(text)
    return texts


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what a tokenizer makes of texts, whatever library version holds it.

    Counted are its vocabulary, the ids of every entry's own text and of a few sentences, special tokens included, and
    the ids that begin and end a text.
    """
    vocabulary = sorted((index, entry) for entry, index in tokenizer.get_vocab().items())
    own = tokenizer.batch_decode([[index] for index, _ in vocabulary], clean_up_tokenization_spaces=False)
    made = tokenizer([*PROBES, *own], truncation=False, padding=False)["input_ids"]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps([vocabulary, made, ends]).encode()).hexdigest()
