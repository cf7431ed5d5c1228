"""A needle among needles whose keys and values are UUIDs: nothing can be guessed from a part. Needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mcbench.bounds import Between
from mcbench.needles import NeedleTask


@dataclass(frozen=True)
class NIAHMultikey3(NeedleTask):
    """After RULER's third multi-key test (https://arxiv.org/abs/2404.06654), with our own wording and places."""

    hay = "needles"
    names = "uuids"
    max_new_tokens = 48

    # digits are tokens of their own in many vocabularies
    characters_per_token: Annotated[float, Between(0.5, 20)] = 1.3
