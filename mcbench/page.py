"""Tables as one HTML page that sorts, filters, draws and compares item by item, from a file and without a network.

Everything stands in the page once: the figures in its tables, where the script reads them as well, and what no table
shows (widths of experts, scores of single items) as JSON. Scripts and styles are the files in `assets/`; the page
allows these and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcbench import escape
from mcbench.catalogue import TASKS
from mcbench.errors import BadInput, UnknownName
from mcbench.files import read_json, read_text
from mcbench.record import Record, Result

SIGNIFICANCE = "figures/figures.json"  # beside the tables, where benchmarks/significance.py puts it
WIDTH_CODES = {1: "1", 2: "2", 3: "3", 4: "4", 8: "8", 16: "g"}  # one character for each expert


@dataclass(frozen=True)
class Head:
    """A column: what it is, in which unit and on how many items.

    plotted: whether it can be drawn against bits; protocol: of a task, empty otherwise.
    """

    title: str
    detail: str = ""
    plotted: bool = False
    higher_is_better: bool = True
    protocol: str = ""

    @property
    def text(self) -> str:
        """Title and detail in one line."""
        return f"{self.title} ({self.detail})" if self.detail else self.title


@dataclass(frozen=True)
class Cell:
    """A figure as it is shown, and as numbers in the unit of its column, to sort and draw by."""

    shown: str = ""
    value: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Line:
    """A row: the run, its name in the table, a cell for each column, and for each column its paired difference.

    uncompressed: whether it is the model that the others are compared with.
    """

    record: Record
    name: str
    cells: tuple[Cell, ...]
    differences: tuple[Cell, ...] = ()
    uncompressed: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table of comparable runs. `bits` is the column of stored bits, counted from the method."""

    title: str
    facts: tuple[str, ...]
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]
    bits: int
    difference_heads: tuple[Head, ...] = ()


@dataclass(frozen=True)
class Significance:
    """How much each expert of a model matters: measures by name, each [L, E]. `model` is the digest of its weights.

    relative: the measures of which only the ratio within a layer means something.
    """

    name: str
    model: str
    source: str
    measures: Mapping[str, NDArray[np.float64]]
    relative: frozenset[str] = field(default_factory=frozenset)


def page(sheets: Sequence[Sheet], notes: Sequence[str] = (), significance: Sequence[Significance] = ()) -> str:
    """The page: equal tables give equal text."""
    style, script = _asset("page.css"), _asset("page.js")
    models = {line.record.model.digest for sheet in sheets for line in sheet.lines}
    return Template(_asset("page.html")).substitute(
        style=style,
        script=script,
        style_digest=_integrity(style),
        script_digest=_integrity(script),
        notes="".join(f"<p>{escape.html(note[0].upper() + note[1:])}.</p>\n" for note in notes),
        models="".join(f"<option>{escape.html(name)}</option>" for name in _models(sheets)),
        sheets="\n".join(_sheet(number, sheet) for number, sheet in enumerate(sheets)),
        data=escape.json_in_script(_data(sheets, [one for one in significance if one.model in models])),
    )


def read_significance(out: Path) -> list[Significance]:
    """The statistics of experts that stand beside the tables in `out`; none where there is no such file.

    Published statistics of which only a summary is kept are left out. Raises BadInput for a file that holds others.
    """
    path = out / SIGNIFICANCE
    if not path.is_file():
        return []
    try:
        return [
            _significance(one)
            for one in read_json(read_text(path, f"the statistics {str(path)!r}"))
            if "token_count" in one
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadInput):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"the statistics {str(path)!r} cannot be read ({reason}); make them again") from None


def series(record: Record) -> str:
    """The method string without seeds: what makes runs points of one curve."""
    bare = re.sub(r"\bseed=[^,()]*,?\s*", "", record.method)
    return re.sub(r",?\s*\)", ")", bare).replace("()", "")


def item_ids(task: str, protocol: str) -> tuple[str, ...]:
    """The ids of a task's items; none where they are not those that `protocol` stands for, or need a published set."""
    try:
        asked = TASKS.registered(task)()
        if not asked.sets() and asked.protocol == protocol:
            return tuple(item.id for item in asked.items())
    except (BadInput, UnknownName, TypeError, ImportError):  # a task of elsewhere, or one that has no default
        pass
    return ()


# -- the tables


def _models(sheets: Sequence[Sheet]) -> list[str]:
    return list(dict.fromkeys(sheet.lines[0].record.model.name for sheet in sheets))


def _sheet(number: int, sheet: Sheet) -> str:
    facts = "".join(f"<li>{escape.html(fact)}</li>" for fact in sheet.facts)
    compared = [line for line in sheet.lines if any(cell.shown for cell in line.differences)]
    tables = [
        _table(number, "scores", "Scores ± standard error", sheet.heads, sheet.lines, [x.cells for x in sheet.lines])
    ]
    if compared:
        about = "Differences to the uncompressed model ± standard error, paired; * beyond two of them"
        lead = (*sheet.heads[: sheet.bits + 1], *sheet.difference_heads)
        cells = [(*line.cells[: sheet.bits + 1], *line.differences) for line in compared]
        tables.append(_table(number, "differences", about, lead, compared, cells))
    return (
        f'<section class="sheet" id="sheet-{number}" data-model="{escape.html(sheet.lines[0].record.model.name)}"'
        f' data-bits="{sheet.bits + 1}" aria-labelledby="title-{number}">\n'
        f'<h3 id="title-{number}">{escape.html(sheet.title)}</h3>\n<ul class="facts">{facts}</ul>\n'
        + "\n".join(tables)
        + "\n</section>"
    )


def _table(
    number: int, kind: str, about: str, heads: Sequence[Head], lines: Sequence[Line], cells: Sequence[Sequence[Cell]]
) -> str:
    name = f"{kind}-{number}"
    columns = "".join(map(_head, (Head("method"), *heads)))
    rows = "\n".join(map(_row, lines, cells))
    return (
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{name}"><table class="{kind}">'
        f'<caption id="{name}">{escape.html(about)}</caption>\n<thead><tr>{columns}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _head(head: Head) -> str:
    detail = f" <small>{escape.html(head.detail)}</small>" if head.detail else ""
    facts = {"data-plot": int(head.higher_is_better) if head.plotted else None, "data-protocol": head.protocol or None}
    return f'<th scope="col"{_attributes(facts)}><button type="button">{escape.html(head.title)}{detail}</button></th>'


def _row(line: Line, cells: Iterable[Cell]) -> str:
    facts = {
        "data-r": line.record.digest[:16],
        "data-s": series(line.record),
        "data-u": "" if line.uncompressed else None,
        "title": "; ".join(line.record.fallbacks) or None,
    }
    return f'<tr{_attributes(facts)}><th scope="row">{escape.html(line.name)}</th>{"".join(map(_cell, cells))}</tr>'


def _cell(cell: Cell) -> str:
    facts = {"data-v": _number(cell.value), "data-e": _number(cell.error)}
    return f"<td{_attributes(facts)}>{escape.html(cell.shown)}</td>"


def _number(value: float | None) -> str | None:
    return None if value is None or not math.isfinite(value) else f"{value:.7g}"


def _attributes(facts: Mapping[str, object]) -> str:
    return "".join(f' {name}="{escape.html(str(value))}"' for name, value in facts.items() if value is not None)


# -- what no table shows


def _data(sheets: Sequence[Sheet], significance: Sequence[Significance]) -> dict[str, Any]:
    records = {line.record.digest: line.record for sheet in sheets for line in sheet.lines}
    tasks = {result.protocol: result for record in records.values() for result in record.results if result.outcomes}
    return {
        "records": {digest[:16]: _run(record) for digest, record in records.items()},
        "tasks": {protocol: _task(result) for protocol, result in tasks.items()},
        "significance": [_statistics(one) for one in significance],
    }


def _run(record: Record) -> dict[str, Any]:
    kept = record.allocation
    return {
        "widths": ["".join(WIDTH_CODES[int(width)] for width in layer) for layer in kept.widths],
        "other": [kept.attention, kept.shared, kept.router],
        "model": record.model.digest,
        "items": {result.protocol: _outcomes(result) for result in record.results if result.outcomes},
    }


def _task(result: Result) -> dict[str, Any]:
    ids = item_ids(result.task, result.protocol)
    share = result.higher_is_better
    return {"task": result.task, "share": share, **({"ids": ids} if len(ids) == len(result.outcomes) else {})}


def _outcomes(result: Result) -> Any:
    """The score of every item: right or wrong as bits, the first the highest of a byte; other numbers as they are."""
    values = result.outcomes
    if all(value in (0, 1) for value in values):
        packed = np.packbits(np.array(values, dtype=np.uint8)).tobytes()
        return [len(values), base64.b64encode(packed).decode()]
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _statistics(one: Significance) -> dict[str, Any]:
    measures = {
        name: {
            "relative": name in one.relative,
            "values": [[float(f"{value:.4g}") for value in layer] for layer in values],
        }
        for name, values in one.measures.items()
    }
    return {"name": one.name, "model": one.model, "source": one.source, "measures": measures}


def _significance(found: Mapping[str, Any]) -> Significance:
    tokens = int(found["tokens"])
    shares = {
        "activation frequency, % of tokens": found["token_count"],
        "routing weight, % of the router's total": found["routing_weight"],
    }
    errors = {
        f"block error at {int(found['bits'])} bits, {name}": values for name, values in found["block_error"].items()
    }
    measures = {
        **{name: 100 * np.array(values, dtype=np.float64) / tokens for name, values in shares.items()},
        **{name: np.array(values, dtype=np.float64) for name, values in errors.items()},
    }
    if any(values.ndim != 2 for values in measures.values()):
        raise ValueError("a measure is not a table of layers by experts")
    source = f"calibrated on {found['data_source']}, {tokens:,} tokens"
    return Significance(str(found["name"]), str(found["model"]), source, measures, frozenset(errors))


def _asset(name: str) -> str:
    return files("mcbench").joinpath("assets", name).read_text(encoding="utf-8")


def _integrity(text: str) -> str:
    """What a content security policy calls a script or style by: SHA-256 of all between its tags."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
