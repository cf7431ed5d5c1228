"""A needle among four: numbers of four cities hidden in essays, one of them asked for."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.needles import NeedleTask


@dataclass(frozen=True)
class NIAHMultikey(NeedleTask):
    """After RULER's first multi-key test (https://arxiv.org/abs/2404.06654), with our own wording and places."""

    distractors = 3
