"""How much each expert of a model matters: its frequency, its routing weight and its error, layer by layer.

What MC-MoE draws in its Figure 3, as numbers: a table of layers by experts for each statistic, and how far the experts
of a layer lie apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcbench.calibration import calibrate
from mcbench.composition import defaults
from mcbench.errors import BadInput, NotInstalled
from mcbench.fidelity import gini
from mcbench.figure import draw_measures, short
from mcbench.leaderboard import pipe_table
from mcbench.model import load_model
from mcbench.stats import Array
from mcbench.text import SAMPLES, calibration_data


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the experts of one model, each [L, E], by the name that they are shown under.

    shares: those that are shares of the tokens, in per cent; of the others only ratios within a layer mean something.
    text: what they were measured on. fallbacks: numbers that had to be estimated, in words.
    """

    model: str
    text: str
    tables: Mapping[str, Array]
    shares: frozenset[str]
    fallbacks: tuple[str, ...] = ()


def measure(
    needs: Mapping[str, str],
    width: int,
    *,
    model: str | None = None,
    calibration: str | Path | None = None,
    samples: int | None = None,
    length: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> Statistics:
    """The statistics of every expert over calibration text; `needs` are those of a method, by the name to show.

    Sums over tokens become shares of the tokens in per cent; errors are those at `width` bits. The other arguments
    mean what they mean in `mcbench.run`. Raises BadInput as `calibrate`, or for a statistic that is not of experts.
    """
    moe = load_model(defaults()["model"] if model is None else model, dtype=dtype, device=device, text=True)
    data = calibration_data(moe, calibration, samples=SAMPLES if samples is None else samples, length=length)
    stats = calibrate(moe, data, tuple(needs.values()), widths=(width,))
    found = {name: np.asarray(stats.table(need), dtype=np.float64) for name, need in needs.items()}
    for need, table in zip(needs.values(), found.values(), strict=True):
        if table.shape[:2] != (stats.layers, stats.experts):
            raise BadInput(f"{need!r} is no statistic of experts, so it has no table of layers by experts")
    shares = frozenset(name for name, table in found.items() if table.ndim == 2)
    shown = {n: 100 * t / max(1, stats.tokens) if n in shares else t[..., 0] for n, t in found.items()}
    text = f"{Path(data.source).name} text, {stats.tokens:,} tokens"  # of a file, only what it is called
    return Statistics(Path(moe.name).name, text, shown, shares, stats.fallbacks)


def expert_tables(found: Statistics) -> str:
    """The statistics in Markdown: how far experts lie apart in each, then every expert of every layer."""
    rows = [[name, *_summary(table, name in found.shares)] for name, table in found.tables.items()]
    heads = ["statistic", "least", "greatest", "greatest ÷ least in a layer, median (range)", "Gini, mean (range)"]
    blocks = [f"Measured: {found.model} on {found.text}.", pipe_table(heads, rows)]
    for name, table in found.tables.items():
        body = [[f"{layer}", *map(short, values), _shown(ratio(values))] for layer, values in enumerate(table)]
        heads = ["layer", *(f"expert {expert}" for expert in range(table.shape[1])), "greatest ÷ least"]
        blocks += [f"### {name}", pipe_table(heads, body)]
    blocks += [f"- estimated: {reason}" for reason in found.fallbacks]
    return "\n\n".join(blocks)


def picture(found: Statistics, out: Path) -> str:
    """Draws the statistics as heat maps to the file `out` and says so, or why there is no picture."""
    try:
        draw_measures(found.tables, found.tables.keys() - found.shares, out)
    except NotInstalled as error:
        return f"No picture: {error}."
    return f"Drawn in {out}."


def ratio(values: Sequence[float] | Array) -> float | None:
    """The greatest over the least, None where the least is zero."""
    return float(np.max(values) / np.min(values)) if np.min(values) > 0 else None


def _summary(table: Array, share: bool) -> list[str]:
    """Least and greatest of a share, and how far the experts of a layer lie apart; blank where one of them is zero."""
    apart = [found for layer in table if (found := ratio(layer)) is not None]
    uneven = [gini(layer) for layer in table]
    ends = [short(table.min()), short(table.max())] if share else ["", ""]
    return [
        *ends,
        _spread(apart, np.median(apart), short) if len(apart) == len(table) else "",
        _spread(uneven, np.mean(uneven), "{:.3f}".format) if share else "",
    ]


def _spread(values: Sequence[float], middle: Any, form: Callable[[float], str]) -> str:
    return f"{form(middle)} ({form(min(values))} to {form(max(values))})"


def _shown(value: float | None) -> str:
    return "" if value is None else short(value)
