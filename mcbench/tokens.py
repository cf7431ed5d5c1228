"""A model's tokenizer, held against its files and its model: there, whole, and of no more tokens than are embedded."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mcbench.checkpoint import first_sentence
from mcbench.errors import BadInput

PROBE = "The price of 3 red apples is 4.25, and 17 of them are here."
# files of which each can hold a vocabulary; without any of them there is no tokenizer
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece*.model",
    "spm.model",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
)
SETTINGS = "tokenizer_config.json"
_MARKS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index", "audio_token_id")
_AROUND = 16  # tokens that may be put around a text: more than any model was trained with
_ENOUGH = 64  # entries beyond the embedding that are tried one by one


def read_tokenizer(source: str, folder: Path, name: str, *, local: bool) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer of a model, or None and the reason: there is none, or it is a program of the folder.

    source: what transformers is asked for, a folder or a name on the hub. folder: where its files are. local: whether
    nothing but this machine may be asked. Raises BadInput for one that is damaged.
    """
    settings = _settings(folder / SETTINGS, name)
    if "auto_map" in settings and not (folder / "tokenizer.json").is_file():
        return None, (
            f"the tokenizer of {name!r} is a program in the model folder ({SETTINGS} says so), and no code of a model"
            " is executed; save it as tokenizer.json to use it"
        )
    absent = f"the model {name!r} has no tokenizer, so it cannot read text; add the tokenizer files"
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=local
        )
    except BaseException as error:  # tokenizers raises what derives from Exception, and from BaseException too
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        if not _has_vocabulary(folder):
            return None, absent
        raise BadInput(f"the tokenizer of {name!r} is damaged: {first_sentence(error)}") from None
    if not _has_vocabulary(folder):  # some classes make one of nothing but their special tokens
        return None, absent
    return tokenizer, ""


def require_fit(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Raises BadInput with the reason where a tokenizer and a model do not belong together.

    It reads an ordinary sentence and gives it back, hands out no id that the embedding has no row for, special tokens
    included, and knows the tokens that the configuration names: those that end a text, and those that stand for images.
    An entry that no text leads to may lie beyond the embedding.
    """
    embedding: Any = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    _require_text(tokenizer, name)
    if (beyond := _beyond(tokenizer, rows)) is not None:
        token, at = beyond
        raise BadInput(
            f"the tokenizer of {name!r} does not belong to its model: it gives {token!r} the id {at}, and the embedding"
            f" has {rows} rows; use the tokenizer that the model was trained with"
        )
    _require_ends(tokenizer, rows, name)
    for key, at in _named_ids(model):
        if at >= rows:
            raise BadInput(f"the config of {name!r} says {key} = {at}, and the embedding has {rows} rows")
        if not _knows(tokenizer, at):
            raise BadInput(f"the config of {name!r} says {key} = {at}, a token that its tokenizer does not know")


def _require_text(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    try:
        ids = list(tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"])
        again = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise BadInput(
            f"the tokenizer of {name!r} is damaged: it cannot read a sentence ({first_sentence(error)})"
        ) from None
    if _letters(str(again)) != _letters(PROBE):
        raise BadInput(
            f"the tokenizer of {name!r} is damaged or has no real vocabulary: of {PROBE!r} it keeps {str(again)[:80]!r}"
        )


def _require_ends(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """What is put around a text is a few tokens that have rows."""
    plain = len(tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"])
    ids = list(tokenizer(PROBE, verbose=False)["input_ids"])
    if max(ids, default=0) >= rows:
        raise BadInput(
            f"the tokenizer of {name!r} does not belong to its model: it puts the id {max(ids)} around a text, and the"
            f" embedding has {rows} rows; use the tokenizer that the model was trained with"
        )
    if len(ids) > plain + _AROUND:
        raise BadInput(f"the tokenizer of {name!r} is damaged: it puts {len(ids) - plain:,} tokens around every text")


def _letters(text: str) -> str:
    """A text without what an honest tokenizer may change: spaces, case, forms of the same character."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _beyond(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[str, int] | None:
    """The first entry, by id, that some text leads to and that has no row; None where there is none."""
    added = {int(at): str(token) for at, token in tokenizer.added_tokens_decoder.items()}
    vocabulary = {int(at): str(token) for token, at in tokenizer.get_vocab().items()} | added
    far = sorted(at for at in vocabulary if at >= rows)
    reached = _reached(tokenizer) if far else None
    for at in far:
        if at in added or reached is None or vocabulary[at] in reached:
            return vocabulary[at], at
    for at in far[:_ENOUGH]:
        text = tokenizer.convert_tokens_to_string([vocabulary[at]])
        if max(tokenizer(text, verbose=False)["input_ids"], default=0) >= rows:
            return vocabulary[at], at
    return None


def _reached(tokenizer: PreTrainedTokenizerBase) -> set[str] | None:
    """The entries of a byte-pair vocabulary that are single characters or made by a merge; None for other kinds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content: dict[str, Any] = json.loads(backend.to_str())["model"]
    if content.get("type") != "BPE" or content.get("ignore_merges"):
        return None
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in content.get("merges", ()))
    single = {token for token in content["vocab"] if len(token) == 1 or (token[:3] == "<0x" and token[-1] == ">")}
    prefix, suffix = content.get("continuing_subword_prefix") or "", content.get("end_of_word_suffix") or ""
    ends = {token for token in content["vocab"] if len(token) == 1 + len(prefix) + len(suffix)}
    return single | ends | {"".join(merge).replace(prefix, "") if prefix else "".join(merge) for merge in merges}


def _named_ids(model: PreTrainedModel) -> Iterator[tuple[str, int]]:
    """The ids that a configuration gives a meaning: the ends of a text, and what stands for other than text."""
    config = model.config
    writing = getattr(model, "generation_config", None)
    for key in ("eos_token_id", "generation eos_token_id", *_MARKS):
        found = getattr(config, key, None)
        if found is None and key == "eos_token_id":
            found = getattr(config.get_text_config(), key, None)
        if key == "generation eos_token_id":
            key, found = "eos_token_id (generation_config.json)", getattr(writing, "eos_token_id", None)
        for at in found if isinstance(found, list | tuple) else (found,):
            if isinstance(at, str | float | bool):
                raise BadInput(f"{key} of this model is {at!r}, which is no id of a token; see its config")
            if isinstance(at, int) and not isinstance(at, bool) and at >= 0:
                yield key, at


def _knows(tokenizer: PreTrainedTokenizerBase, at: int) -> bool:
    try:
        token = tokenizer.convert_ids_to_tokens(at)
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        return False
    return isinstance(token, str) and bool(token)


def _has_vocabulary(folder: Path) -> bool:
    return any(True for pattern in VOCABULARIES for _ in folder.glob(pattern))


def _settings(path: Path, name: str) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none; BadInput where it is damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"the tokenizer of {name!r} is damaged: {SETTINGS}: {error}") from None
    kind = content.get("tokenizer_class") if isinstance(content, dict) else 0
    if not isinstance(content, dict) or not (kind is None or isinstance(kind, str)):
        raise BadInput(f"the tokenizer of {name!r} is damaged: {SETTINGS} does not name a class of tokenizers")
    return content
