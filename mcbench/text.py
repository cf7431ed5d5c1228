"""Calibration text: which tokens the model is run over, and a digest that says so."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mcbench.errors import BadInput
from mcbench.plaintext import SUFFIXES as PACKED
from mcbench.plaintext import Misfit, is_json, json_rows, table_rows, text_of, with_newlines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mcbench.model import MoEModel

SAMPLES = 64
LENGTH = 512
MOST_TOKENS = 100_000_000  # a thousand times what papers calibrate on
JSON_NAMES = (".jsonl", ".json", ".ndjson")  # what else is in such a file is an error
NO_TEXTS = (".csv", ".tsv", ".pdf", ".html", ".htm", ".xml", ".docx", ".yaml", ".yml", ".toml")
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

    source: None for the text of the embedded reference world, else a file, whatever it is called: a plain text (one
    document), JSON lines, a JSON list, a table (parquet, arrow), packed by gzip, bzip2 or xz or not. A row is a string,
    has a "text", or is a conversation ("messages"), which the chat template of the tokenizer writes out.
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
    for document in _reference_texts(seed) if source is None else _file_documents(Path(source), seed):
        ids.extend(_encode(tokenizer, document))
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


@dataclass(frozen=True)
class Conversation:
    """Messages that a chat template writes out, and the place they stand at, for people."""

    messages: list[dict[str, Any]]
    place: str


def _encode(tokenizer: PreTrainedTokenizerBase, document: str | Conversation) -> list[int]:
    """The ids of a document behind BOS or EOS; those of a conversation are what the chat template makes, no more."""
    if isinstance(document, Conversation):
        return list(tokenizer(_written_out(tokenizer, document), add_special_tokens=False, verbose=False)["input_ids"])
    ids = list(tokenizer(document, add_special_tokens=True, verbose=False)["input_ids"])
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return ids if start is None or ids[:1] == [start] else [start, *ids]


def _written_out(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """The text that the tokenizer's chat template makes; BadInput where it has none or does not take the messages."""
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput(
            f"{conversation.place} is a conversation, and the model's tokenizer has no chat template; "
            'give rows with a "text", or a model with a template'
        )
    try:
        return str(tokenizer.apply_chat_template(conversation.messages, tokenize=False))
    except Exception as error:  # a template may raise what it likes
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInput(f"{conversation.place}: the chat template does not take these messages: {reason}") from None


def _reference_texts(seed: int) -> Iterator[str]:
    """Documents of the reference world, as many as the reader asks for."""
    from mcbench.reference import calibration_text

    read, documents = 0, 256
    while True:
        texts = calibration_text(documents, seed)
        yield from texts[read:]
        read, documents = len(texts), documents * 4


def _file_documents(path: Path, seed: int) -> Sequence[str | Conversation]:
    """The documents of a file that hold anything but white space, in an order that `seed` decides."""
    try:
        found = [one for one in _documents(path) if isinstance(one, Conversation) or one.strip()]
    except Misfit as error:
        raise BadInput(f"the calibration text {str(path)!r} cannot be used: {error}") from None
    except FileNotFoundError:
        raise BadInput(f"there is no calibration text at {str(path)!r}; check the path") from None
    except IsADirectoryError:
        raise BadInput(f"the calibration text {str(path)!r} is a folder; name one of the files in it") from None
    except OSError as error:
        raise BadInput(f"{str(path)!r} cannot be read: {error.strerror}; check the path") from None
    random.Random(seed).shuffle(found)
    return found


def _documents(path: Path) -> Iterator[str | Conversation]:
    """What is in a file, by its content: the rows of a table, JSON values, or one plain text.

    The name decides only what a text is to be where both are possible, and that a table of cells is none.
    """
    kind = _kind(path)
    table = table_rows(path)
    if table is not None:
        yield from (_document(row, f"{path.name} row {at}") for at, row in enumerate(table, start=1))
        return
    if kind in NO_TEXTS:
        raise Misfit(f"{path.name} is no text; give plain text, JSON lines, a JSON list, parquet or arrow")
    text = with_newlines(text_of(path))
    if "\0" in text:
        raise Misfit(f"{path.name} is no text: it holds bytes of zero")
    if kind in JSON_NAMES or _looks_like_rows(text):
        yield from (_document(row, place) for place, row in json_rows(text, path.name))
    else:
        yield text


def _kind(path: Path) -> str:
    """The end of a name in small letters, that of its packing left out: ".json" of "C4.JSON.gz"."""
    packed = path.suffix.lower() in PACKED
    return Path(path.stem).suffix.lower() if packed else path.suffix.lower()


def _looks_like_rows(text: str) -> bool:
    """Whether a text whose name says nothing is JSON: its first line an object, or the whole a list of rows."""
    start = text.lstrip()
    if start.startswith("{"):
        return is_json(start.partition("\n")[0]) or is_json(start)
    return start.startswith("[") and is_json(start)


def _document(row: Any, place: str) -> str | Conversation:
    """A row as text or conversation; Misfit where it is neither."""
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        for column in ("text", "page"):  # as most sets have it, and WikiText by pages
            if isinstance(row.get(column), str):
                return str(row[column])
        if isinstance(row.get("prefix"), str) and isinstance(row.get("gold_completion"), str):
            return str(row["prefix"] + row["gold_completion"])  # documents of C4 cut in two
        for column in ("messages", "conversations"):
            if row.get(column):
                return Conversation(_messages(row[column], f"{place}, {column!r}"), place)
        columns = ", ".join(repr(column)[:40] for column in list(row)[:8]) or "nothing"
        raise Misfit(f'{place} has {columns} and no "text"; name the column with the text so')
    raise Misfit(f'{place} is no text; give strings, objects with a "text", or conversations ("messages")')


def _messages(found: Any, place: str) -> list[dict[str, Any]]:
    """Messages as templates take them, with role and content; those of ShareGPT under their other names as well."""
    if not isinstance(found, list):
        raise Misfit(f"{place} is no list of messages")
    messages = []
    for at, message in enumerate(found, start=1):
        if not isinstance(message, dict):
            raise Misfit(f"{place}: message {at} is no object")
        kept = {key: value for key, value in message.items() if value is not None}
        if "role" not in kept and "from" in kept:
            speaker, content = kept.pop("from"), kept.pop("value", None)
            kept = {"role": _SPEAKERS.get(str(speaker), speaker), "content": content}
        if not isinstance(kept.get("role"), str) or not isinstance(kept.get("content", ""), str | list):
            raise Misfit(f'{place}: message {at} needs a "role" and a "content" of text')
        messages.append(kept)
    return messages


_SPEAKERS = {"human": "user", "gpt": "assistant"}


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
