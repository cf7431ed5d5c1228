"""The figures that MC-MoE, its rebuttal and the MC# abstract print, as data: one line of `figures.csv` for each.

`value` is the text as printed, because its digits say how far it was rounded; it is empty where a cell says that
nothing was measured. `bits` is the papers' label. `source` names the document.
"""

from __future__ import annotations

import csv
import importlib.resources
from dataclasses import dataclass
from functools import cache

from mcbench.errors import UnknownName
from mcbench.registry import suggest

SOURCES = {
    "mcmoe-abstract": "abstract of MC-MoE, arXiv 2410.06270",
    "mcmoe-paper": "MC-MoE, submission version of arXiv 2410.06270",
    "mcmoe-reviews": "reviews and rebuttal of MC-MoE",
    "mcsharp-abstract": "abstract of MC#, arXiv 2510.10962, and its related list",
}


@dataclass(frozen=True)
class Figure:
    """One published number and where it stands."""

    table: str
    source: str
    model: str
    method: str
    bits: str
    setting: str
    metric: str
    value: str
    unit: str

    @property
    def number(self) -> float:
        """The value as a number; ValueError where the cell is empty."""
        return float(self.value)

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit."""
        _, _, decimals = self.value.partition(".")
        return 0.5 * 10.0 ** -len(decimals)

    @property
    def row(self) -> str:
        """The row of its table that it stands in."""
        return " ".join(filter(None, (self.model, self.method, self.bits)))


@cache
def figures() -> tuple[Figure, ...]:
    """Every published figure, table by table in printed order."""
    text = importlib.resources.files("mcbench.published").joinpath("figures.csv").read_text(encoding="utf-8")
    return tuple(Figure(**row) for row in csv.DictReader(text.splitlines()))


def tables() -> list[str]:
    """The tables that have figures, T for those of the paper, R for those of the rebuttal."""
    return list(dict.fromkeys(figure.table for figure in figures()))


def table(name: str) -> tuple[Figure, ...]:
    """The figures of one table; UnknownName where there is none of that name."""
    if name not in tables():
        raise UnknownName(f"no published table is called {name!r}; {suggest(name, tables())}")
    return tuple(figure for figure in figures() if figure.table == name)
