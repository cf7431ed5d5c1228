"""Token perplexity of WikiText-2 as papers on quantisation print it (https://arxiv.org/abs/1609.07843)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mcbench.datasets import Rows, load
from mcbench.items import TextItem
from mcbench.task import PerplexityTask, Row


@dataclass(frozen=True)
class WikiText2(PerplexityTask):
    """The test split, joined by blank lines and read once, in whole windows of 2048 tokens; the rest is dropped.

    As GPTQ and MC-MoE have it. Not to be confused with lm-eval's perplexity per word, which is higher by far.
    """

    window: int = 2048
    style: Literal["rolling", "disjoint"] = "disjoint"

    def items(self) -> Sequence[TextItem]:
        """The lines of the test split; blank ones are empty."""
        return [TextItem(str(at), row["text"]) for at, row in enumerate(self._rows().rows)]

    def _rows(self) -> Rows:
        return load("wikitext2-rows", "test")

    def _details(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {**super()._details(rows), "data": {"test": self._rows().origin}}
