"""Drafts of the next tokens of texts that repeat themselves or each other, for the model to accept in one forward.

A draft is what followed the last tokens of a text where they stood before: in the text itself, else in another text of
the batch, else in what all begin with. This is speculative decoding by lookup: a drafted token stays only where the
model chooses it, so greedy texts are what they are without drafts (Yang et al. 2023, arXiv:2304.04487, where the
reference is given; here every earlier token is one). How far a draft reaches is our own rule: as many tokens as were
last foreseen rightly in a row, and no further than most texts of the batch follow, since all of them are computed as
wide as the widest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

LONGEST = 8  # tokens of a draft
MATCH = 3  # how many last tokens of a text must have stood before
FOLLOWING = 0.9  # the share of the texts that must have a token to draft before any is given one


class Drafts:
    """What has been written and read so far, and what may come next.

    texts: token ids of each text as far as it is known; before: those that stand before all of them.
    """

    def __init__(self, texts: Sequence[Sequence[int]], before: Sequence[int] = ()) -> None:
        self._texts: list[list[int]] = [[] for _ in range(len(texts) + 1)]
        self._own: list[dict[tuple[int, ...], int]] = [{} for _ in self._texts]
        self._any: dict[tuple[int, ...], tuple[int, int]] = {}
        self._foreseen = [0] * len(texts)
        for text, tokens in ((-1, before), *enumerate(texts)):
            for token in tokens:
                self._add(text, token)

    def append(self, text: int, token: int) -> None:
        """The next token of a text."""
        self._foreseen[text] = self._foreseen[text] + 1 if self.draft(text, 1) == [token] else 0
        self._add(text, token)

    def draft(self, text: int, length: int) -> list[int]:
        """At most so many tokens that may come next in a text."""
        tokens = self._texts[text]
        last = tuple(tokens[-MATCH:])
        at = self._own[text].get(last)
        if at is not None:  # what came in between comes again and again
            return [tokens[at + step % (len(tokens) - at)] for step in range(length)]
        other, at = self._any.get(last, (text, len(tokens)))
        return self._texts[other][at : at + length]

    def proposals(self, room: Mapping[int, int], most: int) -> dict[int, list[int]]:
        """A draft for each text of a batch: of at most `most` tokens, and no more than `room` has of that text."""
        trusted = {text: min(self._foreseen[text], LONGEST, most, left) for text, left in room.items()}
        width = sorted(trusted.values(), reverse=True)[math.ceil(FOLLOWING * len(trusted)) - 1]
        return {text: self.draft(text, min(width, length)) for text, length in trusted.items()}

    def _add(self, text: int, token: int) -> None:
        tokens = self._texts[text]
        last = tuple(tokens[-MATCH:])
        if len(last) == MATCH:
            self._own[text][last] = len(tokens)
            self._any[last] = text, len(tokens)
        tokens.append(token)


def accepted(said: Sequence[int], draft: Sequence[int]) -> Sequence[int]:
    """The tokens that a model has chosen for good: up to the first that was not drafted, which it chose in its place.

    said[n] is its choice after the first n tokens of the draft.
    """
    right = 0
    while right < len(draft) and said[right] == draft[right]:
        right += 1
    return said[: right + 1]
