"""Evaluation items: the questions a task asks, as plain frozen values.

`group` sorts items for a score of their own. `passage` names what several items are about, a text or a story, so that
their answers hang together and count as one draw where two runs are compared; empty where an item stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ChoiceItem:
    """A context and continuations, each scored by its log-likelihood; choices carry their leading space."""

    id: str
    context: str
    choices: tuple[str, ...]
    gold: int
    group: str = ""
    passage: str = ""


@dataclass(frozen=True)
class GenerationItem:
    """A prompt continued greedily until a stop string; the task extracts the answer and compares."""

    id: str
    prompt: str
    answer: str
    stop: tuple[str, ...]
    max_new_tokens: int
    group: str = ""
    passage: str = ""


@dataclass(frozen=True)
class CodeItem:
    """The head of a Python function; prompt and completion are run in a sandbox, and the tests ask them."""

    id: str
    prompt: str
    tests: str
    stop: tuple[str, ...]
    max_new_tokens: int
    group: str = ""
    passage: str = ""


@dataclass(frozen=True)
class TextItem:
    """A text whose perplexity is measured."""

    id: str
    text: str
    group: str = ""
    passage: str = ""


@dataclass(frozen=True)
class RowItem:
    """A row of a data set in its own columns; a task definition of lm-eval makes the question of it."""

    id: str
    row: Mapping[str, Any]
    group: str = ""
    passage: str = ""


Item = ChoiceItem | GenerationItem | CodeItem | TextItem | RowItem
