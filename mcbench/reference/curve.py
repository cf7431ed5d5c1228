"""How well a network under training does: its accuracy on a few held-out items of every family."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mcbench.reference import tokenizer as tokens
from mcbench.reference import world as told
from mcbench.reference.families import FAMILIES, chance, items

Forward = Callable[[Tensor], Tensor]  # [B, T] token ids -> [B, T, V] logits
ROWS = 32


class Continuation(NamedTuple):
    """What a model thinks of an ending: its log-likelihood, and whether greedy decoding would write it."""

    log_likelihood: float
    greedy: bool


def accuracies(forward: Forward, tokenizer: Tokenizer, world: told.World, count: int = 60) -> dict[str, float]:
    """The share of held-out items answered rightly, by family.

    What is generated counts as right when every token of the reference answer is the likeliest one after those before
    it, which is what greedy decoding would write.
    """
    found = {}
    for family in FAMILIES:
        if chance(family):
            asked = items(family, count, seed=1, world=world)
            pairs = [(item.context, choice) for item in asked for choice in item.choices]
            scores = iter(continuations(forward, tokenizer, pairs))
            right = 0
            for item in asked:
                values = [next(scores).log_likelihood for _ in item.choices]
                right += values.index(max(values)) == item.gold
            found[family] = right / count
    rng = random.Random("curve")
    written: dict[str, told.Writer] = {
        "gsm8k": functools.partial(told.reasoning, easy=True),
        "humaneval": told.functions,
    }
    for family, write in written.items():
        documents = [write(world, rng, True).segments for _ in range(count)]
        pairs = [(parts[0].text, "".join(part.text for part in parts[1:])) for parts in documents]
        found[family] = _greedy(forward, tokenizer, pairs)
    for words in (90, 360):
        found[f"needle, {words} words"] = _greedy(
            forward, tokenizer, [_needle(world, rng, words) for _ in range(count)]
        )
    return {family: round(accuracy, 3) for family, accuracy in found.items()}


@torch.no_grad()
def continuations(forward: Forward, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """What the model thinks of each (context, ending)."""
    start = tokens.beginning(tokenizer)
    encoded = [
        (
            [start, *tokenizer.encode(context, add_special_tokens=False).ids],
            tokenizer.encode(ending, add_special_tokens=False).ids,
        )
        for context, ending in pairs
    ]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
    found: dict[int, Continuation] = {}
    for first in range(0, len(order), ROWS):
        chunk = order[first : first + ROWS]
        rows = [encoded[i][0] + encoded[i][1] for i in chunk]
        longest = max(map(len, rows))
        logits = forward(torch.tensor([row + [0] * (longest - len(row)) for row in rows])).float()  # [B, T, V]
        for i, row, scores in zip(chunk, rows, logits, strict=True):
            length = len(encoded[i][0])
            wanted = torch.tensor(row[length:])
            scores = scores[length - 1 : len(row) - 1]
            total = scores.log_softmax(-1).gather(1, wanted[:, None]).sum()
            found[i] = Continuation(float(total), bool((scores.argmax(-1) == wanted).all()))
    return [found[i] for i in range(len(pairs))]


def _greedy(forward: Forward, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> float:
    return sum(found.greedy for found in continuations(forward, tokenizer, pairs)) / len(pairs)


def _needle(world: told.World, rng: random.Random, words: int) -> tuple[str, str]:
    _, colour, thing = told.needle_fact(rng, True)
    code = told.code_number(rng)
    hay = told.haystack(world, rng, [f"the {colour} {thing} {code}."], words, True)
    return f"notes: {hay} question: the {colour} {thing}", f" {code}"
