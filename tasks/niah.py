"""A needle in a haystack: one number hidden in essays, asked for after 4k to 32k tokens."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.needles import NeedleTask


@dataclass(frozen=True)
class NIAH(NeedleTask):
    """The original test (https://github.com/gkamradt/LLMTest_NeedleInAHaystack) with a rule in place of a judge.

    Nearly every model that was trained at a length solves it there; `niah-multikey` and its harder kin do not saturate.
    """
