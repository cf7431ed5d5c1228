"""Figures for print from records: scores against stored bits, the bits of every expert, and how much it matters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mcbench import escape
from mcbench.bounds import require_settings
from mcbench.errors import BadInput, UnknownName
from mcbench.leaderboard import Table, find_records, sheet, tabulate_records
from mcbench.page import Line, Sheet, read_significance, series
from mcbench.registry import suggest
from mcbench.report import original_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("tradeoff", "allocation", "significance")
FORMATS = (".svg", ".png")
MOST_PANELS = 16
# of Okabe and Ito's colours those that stand out on white; shape and line differ as well, for print without colour
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#7f6000", "#56b4e9", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "h")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2, 1, 2)))
WIDTHS = (1, 2, 3, 4, 8, 16)


def style(at: int) -> tuple[str, str, Any]:
    """Colour, marker and line of the series at that place: no two of 64 look alike, in print without colour either."""
    turn = at // len(COLOURS)
    return (
        COLOURS[at % len(COLOURS)],
        MARKERS[(at + turn) % len(MARKERS)],
        LINES[(at + 2 * turn) % len(LINES)],
    )


def figure(
    kind: str,
    sources: Sequence[Path],
    out: Path,
    *,
    table: int | None = None,
    score: str = "",
    methods: Sequence[str] = (),
    bits: float | None = None,
    statistics: Path = Path("leaderboards"),
) -> str:
    """Draws one of KINDS from records to the file `out`, SVG or PNG, and says what it drew.

    table: which of the tables that the records make, from 1; needed where there are several. score: a column, such as a
    task, for `tradeoff` (the first where empty). methods, bits: draw these method strings, this budget only.
    statistics: the folder of the leaderboard beside which those of experts stand, for `significance`.

    Raises UnknownName for a kind, score or method that there is not, BadInput for records as `find_records` and
    `tabulate_records`, a table that there is not, another format, and where nothing is left to draw, NotInstalled where
    matplotlib is absent.
    """
    if kind not in KINDS:
        raise UnknownName(f"no figure is called {kind!r}; {suggest(kind, KINDS)}")
    require_settings(table=table, bits=bits)
    if out.suffix not in FORMATS:
        raise BadInput(f"{str(out)!r} is neither {' nor '.join(FORMATS)}; end the file's name in one of them")
    shown = sheet(_chosen(tabulate_records(find_records(sources))[0], table))
    if kind == "significance":
        return _draw_significance(shown, statistics, out)
    lines = _selected(shown, methods, bits)
    return _draw_tradeoff(shown, lines, score, out) if kind == "tradeoff" else _draw_allocation(shown, lines, out)


def front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """The places of the (bits, score) points that no other beats, by rising bits.

    A point beats another with at most its bits and at least as good a score, one of the two being better.
    """
    sign = -1 if higher_is_better else 1
    kept: list[int] = []
    for at in sorted(range(len(points)), key=lambda at: (points[at][0], sign * points[at][1])):
        if not kept or points[at] == points[kept[-1]] or sign * points[at][1] < sign * points[kept[-1]][1]:
            kept.append(at)
    return kept


def _chosen(tables: Sequence[Table], number: int | None) -> Table:
    listed = "; ".join(f"{at} {sheet(one).title}, {len(one.records)} records" for at, one in enumerate(tables, 1))
    if number is None and len(tables) > 1:
        raise BadInput(f"the records make {len(tables)} tables; choose one with --table: {listed}")
    if number is not None and not 1 <= number <= len(tables):
        raise BadInput(f"there is no table {number}; there is {listed}")
    return tables[(number or 1) - 1]


def _selected(shown: Sheet, methods: Sequence[str], bits: float | None) -> list[Line]:
    """The compressed runs of these methods, with or without a seed, and of this budget."""
    lines = [line for line in shown.lines if not line.uncompressed]
    known = {name for line in lines for name in _names(line)}
    for method in methods:
        if method not in known:
            raise UnknownName(f"no run here is of the method {method!r}; {suggest(method, known)}")
    if methods:
        lines = [line for line in lines if _names(line) & set(methods)]
    budgets = sorted({asked for line in lines if (asked := line.record.bits.asked) is not None})
    if bits is not None:
        if bits not in budgets:
            there = ", ".join(f"{asked:g}" for asked in budgets) or "none"
            raise BadInput(f"no run here was asked for {bits:g} bits; there are {there}")
        lines = [line for line in lines if line.record.bits.asked == bits]
    if not lines:
        raise BadInput("the records hold no compressed model to draw")
    return lines


def _names(line: Line) -> set[str]:
    """What a run can be called by: its method string, as typed, whole, or without seeds."""
    return {line.record.asked, line.record.method, series(line.record)}


# -- scores against bits


def _draw_tradeoff(shown: Sheet, lines: Sequence[Line], score: str, out: Path) -> str:
    titles = {head.title: at for at, head in reversed(list(enumerate(shown.heads))) if head.plotted}
    titles = dict(sorted(titles.items(), key=lambda item: item[1]))
    if score and score not in titles:
        raise UnknownName(f"no score is called {score!r} here; {suggest(score, titles)}")
    if not titles:
        raise BadInput("the records hold no score to draw")
    column = titles[score or next(iter(titles))]
    head = shown.heads[column]
    points = [(line, line.cells[shown.bits].value, line.cells[column].value) for line in lines]
    known = [(line, bits, value) for line, bits, value in points if bits is not None and value is not None]
    if not known:
        raise BadInput(f"no run here has the score {head.title!r}")
    from mcbench.reference.curve import drawing

    with drawing(out, 6.0, 4.0) as canvas:
        axes = canvas.subplots()
        names = sorted({series(line.record) for line in lines})
        for at, name in enumerate(names):
            mine = sorted((p for p in known if series(p[0].record) == name), key=lambda p: p[1])
            if mine:
                _draw_series(axes, at, name, mine, column)
        best = [known[at] for at in front([p[1:] for p in known], higher_is_better=head.higher_is_better)]
        right = max(bits for _, bits, _ in known)
        axes.step(
            [*(bits for _, bits, _ in best), right], [*(value for *_, value in best), best[-1][2]],
            where="post", color="0.35", linewidth=2.4, alpha=0.5, zorder=1, label="Pareto front", gid="front",
        )  # fmt: skip
        whole = next((line.cells[column].value for line in shown.lines if line.uncompressed), None)
        if whole is not None:
            axes.axhline(
                whole,
                color="black",
                linewidth=0.9,
                linestyle=(0, (1, 3)),
                label=escape.label(original_name(shown.lines[0].record)),
                zorder=0,
            )
        if not head.higher_is_better:
            _logarithmic(axes, [value for *_, value in known])
        axes.set(title=escape.label(shown.title), xlabel="stored bits per weight", ylabel=escape.label(head.text))
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, handlelength=3.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return f"wrote {out}: {head.title} of {len(known)} runs against stored bits, {len(best)} on the Pareto front"


def _draw_series(axes: Axes, at: int, name: str, points: Sequence[tuple[Line, float, float]], column: int) -> None:
    """The points of one method, joined where they are not several seeds of one budget."""
    asked = [line.cells[0].shown for line, *_ in points]
    joined = 1 < len(points) == len(set(asked))
    errors = [line.cells[column].error or 0.0 for line, *_ in points]
    colour, marker, line = style(at)
    axes.errorbar(
        [bits for _, bits, _ in points], [value for *_, value in points], yerr=errors,
        label=escape.label(name), color=colour, marker=marker, markersize=5.5,
        markeredgecolor="white", markeredgewidth=0.5, elinewidth=1.0, capsize=2.0, linewidth=1.3,
        linestyle=line if joined else "none", zorder=3,
    )  # fmt: skip


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A log scale where values span more than a factor of two; ticks in plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    if min(values) > 0 and max(values) / min(values) > 2:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


# -- heat maps


def _draw_allocation(shown: Sheet, lines: Sequence[Line], out: Path) -> str:
    from collections import Counter

    lines = [line for line in lines if line.record.allocation.widths.size]
    if not lines:
        raise BadInput("none of these runs has routed experts")
    if len(lines) > MOST_PANELS:
        raise BadInput(f"{len(lines)} heat maps are more than {MOST_PANELS}; choose with --methods or --bits")
    twice = Counter(line.name for line in lines)
    panels = [
        (
            f"{line.name}, {line.cells[0].shown} bits" if twice[line.name] > 1 else line.name,
            np.asarray(line.record.allocation.widths, dtype=np.float64),
        )
        for line in lines
    ]
    heat_maps(out, panels, [[f"{int(w)}" for w in values.flat] for _, values in panels], "bits", WIDTHS)
    return f"wrote {out}: bits of every expert in {len(panels)} runs on {shown.title}"


def _draw_significance(shown: Sheet, folder: Path, out: Path) -> str:
    model = shown.lines[0].record.model
    found = [one for one in read_significance(folder) if one.model == model.digest]
    if not found:
        raise BadInput(
            f"there are no statistics of the experts of {model.name!r} beside {str(folder)!r}; records hold none, "
            "`python benchmarks/significance.py` measures them"
        )
    draw_measures(found[0].measures, found[0].relative, out)
    return f"wrote {out}: {len(found[0].measures)} measures of the experts of {model.name}"


def draw_measures(measures: Mapping[str, NDArray[np.float64]], relative: Collection[str], out: Path) -> None:
    """Heat maps of measures [L, E] by name; of those in `relative` only the ratio within a layer means something."""
    panels = [
        (f"{name}\ntimes the layer's median", values / np.median(values, axis=1, keepdims=True))
        if name in relative
        else (name, values)
        for name, values in measures.items()
    ]
    heat_maps(out, panels, [[short(value) for value in values.flat] for _, values in panels])


def short(value: float) -> str:
    """Three digits where it has decimals, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def heat_maps(
    out: Path,
    panels: Sequence[tuple[str, Any]],
    texts: Sequence[Sequence[str]],
    unit: str = "",
    steps: Sequence[int] = (),
) -> None:
    """One heat map of [L, E] a panel, with the texts of its cells where there is room, to the file `out`.

    steps: the values that there can be, each a shade; empty for a plain scale. Raises NotInstalled where matplotlib is
    absent.
    """
    layers, experts = panels[0][1].shape
    across = 1 if experts > 16 else min(2, len(panels))
    down = -(-len(panels) // across)
    wide, high = max(2.6, 0.36 * min(experts, 40)), max(0.8, 0.26 * min(layers, 48))
    from mcbench.reference.curve import drawing

    with drawing(out, across * (wide + 0.7), down * (high + 0.85)) as canvas:
        import matplotlib
        from matplotlib.colors import BoundaryNorm, Normalize

        fields = canvas.subplots(down, across, squeeze=False)
        colours = matplotlib.colormaps["Blues"]  # darker is more, also in grey
        for unused in fields.flat[len(panels) :]:
            unused.set_visible(False)
        for axes, (title, values), written in zip(fields.flat, panels, texts, strict=False):
            norm = BoundaryNorm([*steps, 2 * steps[-1]], 256) if steps else Normalize(0, np.percentile(values, 95))
            axes.pcolormesh(values, cmap=colours, norm=norm, edgecolors="white", linewidth=0.5)
            axes.set(title=escape.label(title), xlabel="expert", ylabel="layer", ylim=(layers, 0))
            axes.set_xticks(np.arange(0, experts, 1 + experts // 33) + 0.5, range(0, experts, 1 + experts // 33))
            axes.set_yticks(np.arange(0, layers, 1 + layers // 16) + 0.5, range(0, layers, 1 + layers // 16))
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            if experts <= 40 and layers <= 48:
                _write_cells(axes, values, written, norm)
        if unit:
            _key(canvas, colours, norm, steps, unit)


def _write_cells(axes: Axes, values: Any, written: Sequence[str], norm: Any) -> None:
    for ((layer, expert), value), text in zip(np.ndenumerate(values), written, strict=True):
        shade = float(norm(value)) / (256 if norm.__class__.__name__ == "BoundaryNorm" else 1)
        size = 7 if len(text) < 4 else 6
        colour = "white" if shade > 0.6 else "black"
        axes.text(expert + 0.5, layer + 0.5, text, ha="center", va="center", fontsize=size, color=colour)


def _key(canvas: Figure, colours: Any, norm: Any, steps: Sequence[int], unit: str) -> None:
    """The shades of the values that there can be."""
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=colours(int(norm(step))), edgecolor="0.5", linewidth=0.4, label=f"{step}") for step in steps
    ]
    canvas.legend(handles=patches, title=unit, ncols=len(steps), loc="outside lower center", frameon=False, fontsize=8)
