"""Token perplexity of web text: the beginning of C4's validation split (https://arxiv.org/abs/1910.10683)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from mcbench.bounds import Between, Window
from mcbench.datasets import load
from mcbench.items import TextItem
from mcbench.kinds import PerplexityTask


@dataclass(frozen=True)
class C4(PerplexityTask):
    """The first `documents`, joined by spaces and read once, in the first `windows` whole windows of 2048 tokens.

    As GPTQ's newer C4 evaluation has it. A folder may hold another sample of C4 than the validation split's first
    file; the record names it, and its protocol id is another.
    """

    window: Window = 2048
    style: Literal["rolling", "disjoint"] = "disjoint"
    separator: str = " "
    documents: Annotated[int, Between(1, 1_000_000)] = 1100
    windows: Annotated[int, Between(1, 1_000_000)] = 256

    def items(self) -> Sequence[TextItem]:
        """The first `documents` of the split, or all where there are fewer."""
        return [
            TextItem(str(at), row["text"]) for at, row in enumerate(load("c4", "validation").rows[: self.documents])
        ]

    def _most_windows(self) -> int:
        return self.windows

    def sets(self) -> Sequence[tuple[str, str]]:
        """The set that the items are made from."""
        return (("c4", "validation"),)
