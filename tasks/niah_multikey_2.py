"""A needle among needles: nothing but sentences of the same form, one of them asked for. Needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mcbench.bounds import Between
from mcbench.needles import NeedleTask


@dataclass(frozen=True)
class NIAHMultikey2(NeedleTask):
    """After RULER's second multi-key test (https://arxiv.org/abs/2404.06654), with our own wording and places."""

    hay = "needles"
    names = "numbered cities"

    # digits are tokens of their own in many vocabularies
    characters_per_token: Annotated[float, Between(0.5, 20)] = 2.1
