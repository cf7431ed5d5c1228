"""Word perplexity of WikiText-2, page by page, as lm-eval's `wikitext` has it (https://arxiv.org/abs/1609.07843)."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.bounds import Window
from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class WikiText2Word(HarnessTask):
    """exp(nats per whitespace word of the raw page), each page detokenised and read by itself in rolling windows.

    Not to be confused with the perplexity per token that papers on quantisation print, which is lower by far.

    window: tokens predicted at a time, 0 for the model's whole window.
    """

    definition = "wikitext/wikitext.yaml"
    data = "wikitext2"
    split = "test"
    metric = "word_perplexity"
    also = ("byte_perplexity", "bits_per_byte")
    higher_is_better = False
    window_field = "window"

    window: Window = 0
