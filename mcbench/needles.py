"""A sentence hidden in a long text and asked for at its end: the grid of lengths and depths, placed in text.

Places are counted in characters and sentences, never in tokens, so that every tokenizer gets the same texts.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mcbench.bounds import Between, Seed, shown
from mcbench.datasets import Rows, load
from mcbench.errors import BadInput
from mcbench.items import GenerationItem
from mcbench.kinds import GenerationTask

NEEDLE = "The secret number of {key} is {value}."
BEFORE = "Remember what the following text says about secret numbers; it will be asked at the end.\n\n"
AFTER = "\n\nQuestion: What is the secret number of {key}?\nAnswer: The secret number of {key} is"
MOST_CHARACTERS = 200_000_000  # of all texts of a task together, which are made and kept in memory
CITIES = (
    "Antwerp", "Bergen", "Bilbao", "Bogota", "Calgary", "Dakar", "Darwin", "Dublin", "Durban", "Florence", "Geneva",
    "Glasgow", "Hanoi", "Havana", "Helsinki", "Jakarta", "Kyoto", "Leipzig", "Lima", "Lisbon", "Lyon", "Manila",
    "Naples", "Nairobi", "Osaka", "Oslo", "Perth", "Porto", "Prague", "Quito", "Riga", "Seattle", "Seville", "Sofia",
    "Tallinn", "Tunis", "Turin", "Utrecht", "Vienna", "Warsaw", "Zagreb", "Zurich",
)  # fmt: skip


@dataclass(frozen=True)
class NeedleTask(GenerationTask):
    """Greedy exact match over a grid of lengths and depths: subclass it once per file and say what the hay is.

    lengths: of the whole prompt, in tokens of `characters_per_token` characters; a tokenizer that makes more tokens
    of the text may exceed the model's window, which is counted as truncated. depths: how many places from the
    beginning (0) to the end (1). repeats: texts in a cell of the grid, each with its own hay, key and number.

    hay: "essays" hides the needle among sentences of essays, "needles" among sentences of its own kind.
    distractors: other needles hidden in essays. names: what keys and values are.
    """

    hay: ClassVar[Literal["essays", "needles"]] = "essays"
    distractors: ClassVar[int] = 0
    names: ClassVar[Literal["cities", "numbered cities", "uuids"]] = "cities"
    max_new_tokens: ClassVar[int] = 16

    lengths: Annotated[tuple[int, ...], Between(256, 2**20, most=100)] = (4096, 8192, 16384, 32768)
    depths: Annotated[int, Between(2, 1000)] = 11
    repeats: Annotated[int, Between(1, 1000)] = 3
    seed: Seed = 0
    characters_per_token: Annotated[float, Between(0.5, 20)] = 3.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths or not all(isinstance(n, int) for n in self.lengths):
            raise BadInput(f"{self.name} needs lengths in whole tokens, not {shown(self.lengths)}")
        characters = sum(self.lengths) * self.depths * self.repeats * self.characters_per_token
        if characters > MOST_CHARACTERS:
            raise BadInput(
                f"{self.name} would write {characters:,.0f} characters of text, and {MOST_CHARACTERS:,} are the most: "
                "ask for fewer lengths, depths or repeats"
            )

    def items(self) -> Sequence[GenerationItem]:
        """One prompt for each length, depth and repeat."""
        sentences = _sentences(load("niah", "test")) if self.hay == "essays" else ()
        return [
            self._item(sentences, length, at / (self.depths - 1), repeat)
            for length in self.lengths
            for at in range(self.depths)
            for repeat in range(self.repeats)
        ]

    def sets(self) -> Sequence[tuple[str, str]]:
        """The essays, where they are the hay."""
        return (("niah", "test"),) if self.hay == "essays" else ()

    def extract(self, text: str) -> str:
        """The first word, without the full stop behind it."""
        words = text.split()
        return words[0].rstrip(".,;") if words else ""

    def _item(self, sentences: Sequence[str], length: int, depth: float, repeat: int) -> GenerationItem:
        rng = random.Random(f"{self.name} {self.seed} {length} {depth:.4f} {repeat}")
        pairs = _pairs(self.names, rng, length)
        key, value = next(pairs)
        needle = NEEDLE.format(key=key, value=value)
        after = AFTER.format(key=key)
        # room for the answer is kept as well
        room = int(length * self.characters_per_token) - len(BEFORE) - len(needle) - len(after) - len(value) - 2
        if self.hay == "essays":
            others = [NEEDLE.format(key=k, value=v) for _, (k, v) in zip(range(self.distractors), pairs, strict=False)]
            hay = _fill(_around(sentences, rng.randrange(len(sentences))), room - sum(len(o) + 1 for o in others))
            for other in others:
                hay.insert(rng.randrange(len(hay) + 1), other)
        else:
            hay = _fill((NEEDLE.format(key=k, value=v) for k, v in pairs), room)
        hay.insert(_place(hay, depth), needle)
        group = f"{length} tokens, depth {depth:.2f}"
        prompt = f"{BEFORE}{' '.join(hay)}{after}"
        return GenerationItem(f"{group}, {repeat}", prompt, value, ("\n",), self.max_new_tokens, group)


def _sentences(essays: Rows) -> tuple[str, ...]:
    """The essays one after another, cut at the ends of sentences, each on one line."""
    text = " ".join(" ".join(row["text"].split()) for row in essays.rows)
    return tuple(re.split(r"(?<=[.!?]) ", text))


def _around(sentences: Sequence[str], start: int) -> Iterator[str]:
    """The sentences from `start` on, again from the first after the last."""
    while True:
        yield from sentences[start:]
        start = 0


def _fill(sentences: Iterator[str], characters: int) -> list[str]:
    """As many whole sentences as fit."""
    found: list[str] = []
    for sentence in sentences:
        characters -= len(sentence) + 1
        if characters < 0:
            return found
        found.append(sentence)
    return found


def _place(hay: Sequence[str], depth: float) -> int:
    """The gap between sentences that lies nearest to a share of the text."""
    target = depth * sum(len(sentence) + 1 for sentence in hay)
    gaps = [0]
    for sentence in hay:
        gaps.append(gaps[-1] + len(sentence) + 1)
    return min(range(len(gaps)), key=lambda at: abs(gaps[at] - target))


def _pairs(names: str, rng: random.Random, length: int) -> Iterator[tuple[str, str]]:
    """Keys, none of them twice, with their values; BadInput where a text of that length needs more than there are."""

    def number() -> str:
        return str(rng.randrange(10**6, 10**7))

    def unique() -> str:
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    make: dict[str, Callable[[], tuple[str, str]]] = {
        "cities": lambda: (rng.choice(CITIES), number()),
        "numbered cities": lambda: (f"{rng.choice(CITIES)} {rng.randrange(1000)}", number()),
        "uuids": lambda: (unique(), unique()),
    }
    most = {"cities": len(CITIES), "numbered cities": 1000 * len(CITIES)}.get(names)
    seen: set[str] = set()
    while True:
        if len(seen) == most:
            raise BadInput(f"a text of {length} tokens needs more than the {most} {names} there are: ask for shorter")
        key, value = make[names]()
        if key not in seen:
            seen.add(key)
            yield key, value
