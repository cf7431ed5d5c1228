"""Token perplexity of WikiText-2 as papers on quantisation print it (https://arxiv.org/abs/1609.07843)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mcbench.bounds import Window
from mcbench.datasets import load
from mcbench.items import TextItem
from mcbench.kinds import PerplexityTask


@dataclass(frozen=True)
class WikiText2(PerplexityTask):
    """The test split, joined by blank lines and read once, in whole windows of 2048 tokens; the rest is dropped.

    As GPTQ and MC-MoE have it. Not to be confused with lm-eval's perplexity per word, which is higher by far.
    """

    window: Window = 2048
    style: Literal["rolling", "disjoint"] = "disjoint"

    def items(self) -> Sequence[TextItem]:
        """The lines of the test split; blank ones are empty."""
        return [TextItem(str(at), row["text"]) for at, row in enumerate(load("wikitext2-rows", "test").rows)]

    def sets(self) -> Sequence[tuple[str, str]]:
        """The set that the items are made from."""
        return (("wikitext2-rows", "test"),)
