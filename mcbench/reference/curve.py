"""How well a network under training does: its accuracy on a few held-out items of every family, and the picture of it.

`python -m mcbench.reference.curve CSV OUT.svg` draws the curve.csv that training leaves beside its weights.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mcbench.errors import BadInput, NotInstalled
from mcbench.files import write_whole
from mcbench.reference import tokenizer as tokens
from mcbench.reference import world as told
from mcbench.reference.families import FAMILIES, chance, items

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Forward = Callable[[Tensor], Tensor]  # [B, T] token ids -> [B, T, V] logits
ROWS = 32

# columns of curve.csv that every row has; each further one is a family
MEASURES = (
    "step",
    "tokens",
    "seconds",
    "learning_rate",
    "loss",
    "answer_accuracy",
    "least_expert_share",
    "greatest_expert_share",
)
COLUMNS = 4  # small pictures side by side
INK, PALE = "#1f4e79", "#9db8d2"
STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and small
    "svg.hashsalt": "mcbench",  # names of parts inside the file, otherwise random
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # ours to lay out with, then what viewers have of that width
    "font.size": 9,
    "text.parse_math": False,  # names are no formulas, whatever dollars are in them
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
}


class Continuation(NamedTuple):
    """What a model thinks of an ending: its log-likelihood, and whether greedy decoding would write it."""

    log_likelihood: float
    greedy: bool


def accuracies(forward: Forward, tokenizer: Tokenizer, world: told.World, count: int = 60) -> dict[str, float]:
    """The share of development items answered rightly, by family.

    What is generated counts as right when every token of the reference answer is the likeliest one after those before
    it, which is what greedy decoding would write.
    """
    found = {}
    for family in FAMILIES:
        if chance(family):
            asked = items(family, count, world=world, split="development")
            pairs = [(item.context, choice) for item in asked for choice in item.choices]
            scores = iter(continuations(forward, tokenizer, pairs))
            right = 0
            for item in asked:
                values = [next(scores).log_likelihood for _ in item.choices]
                right += values.index(max(values)) == item.gold
            found[family] = right / count
    rng = random.Random("curve")
    written: dict[str, told.Writer] = {
        "gsm8k": functools.partial(told.reasoning, easy=True),
        "humaneval": told.functions,
    }
    for family, write in written.items():
        documents = [write(world, rng, "development").segments for _ in range(count)]
        pairs = [(parts[0].text, "".join(part.text for part in parts[1:])) for parts in documents]
        found[family] = _greedy(forward, tokenizer, pairs)
    for words in (90, 360):
        found[f"needle, {words} words"] = _greedy(
            forward, tokenizer, [_needle(world, rng, words) for _ in range(count)]
        )
    return {family: round(accuracy, 3) for family, accuracy in found.items()}


@torch.no_grad()
def continuations(forward: Forward, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """What the model thinks of each (context, ending)."""
    start = tokens.beginning(tokenizer)
    encoded = [
        (
            [start, *tokenizer.encode(context, add_special_tokens=False).ids],
            tokenizer.encode(ending, add_special_tokens=False).ids,
        )
        for context, ending in pairs
    ]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
    found: dict[int, Continuation] = {}
    for first in range(0, len(order), ROWS):
        chunk = order[first : first + ROWS]
        rows = [encoded[i][0] + encoded[i][1] for i in chunk]
        longest = max(map(len, rows))
        logits = forward(torch.tensor([row + [0] * (longest - len(row)) for row in rows])).float()  # [B, T, V]
        for i, row, scores in zip(chunk, rows, logits, strict=True):
            length = len(encoded[i][0])
            wanted = torch.tensor(row[length:])
            scores = scores[length - 1 : len(row) - 1]
            total = scores.log_softmax(-1).gather(1, wanted[:, None]).sum()
            found[i] = Continuation(float(total), bool((scores.argmax(-1) == wanted).all()))
    return [found[i] for i in range(len(pairs))]


def _greedy(forward: Forward, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> float:
    return sum(found.greedy for found in continuations(forward, tokenizer, pairs)) / len(pairs)


def _needle(world: told.World, rng: random.Random, words: int) -> tuple[str, str]:
    _, colour, thing = told.needle_fact(rng, "development")
    code = told.code_number(rng)
    hay = told.haystack(world, rng, [f"the {colour} {thing} {code}."], words)
    return f"notes: {hay} question: the {colour} {thing}", f" {code}"


def picture(curve: Path, out: Path) -> None:
    """Draws a curve.csv as SVG: the training above, the accuracy of every family below, each in a field of its own."""
    rows = _read(curve)
    families = [name for name in rows[0] if name not in MEASURES]
    depth = 1 + -(-len(families) // COLUMNS)
    with drawing(out, 9, 0.5 + 1.75 * depth) as figure:
        fields = iter(figure.subplots(depth, COLUMNS, sharex=True, squeeze=False).flat)
        for draw in (_loss, _rate, _answers, _load):
            draw(next(fields), rows)
        for family in families:
            _family(next(fields), rows, family)
        for unused in fields:  # its x axis serves the fields above it
            unused.yaxis.set_visible(False)
            unused.spines.left.set_visible(False)
        figure.supxlabel("million tokens read" + ("; dotted: a blind guess" if families else ""), fontsize=9)


@contextmanager
def drawing(out: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches to draw on, then written as SVG, or PNG if `out` says so: equal drawings, equal files.

    Raises NotInstalled where matplotlib is absent.
    """
    try:
        import matplotlib.style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotInstalled(f"pictures need the package 'matplotlib': pip install '.[figures]' ({error})") from error
    with matplotlib.style.context(STYLE, after_reset=True):  # whatever the user's own settings are
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        written = io.BytesIO()
        if out.suffix == ".png":
            figure.savefig(written, format="png", metadata={"Software": None}, dpi=300)
        else:
            figure.savefig(written, format="svg", metadata={"Date": None})
    write_whole(out, written.getvalue())


def _read(curve: Path) -> list[dict[str, float | None]]:
    """The rows of a curve.csv; a family that was not asked at a step is None there."""
    try:
        with curve.open(newline="") as file:
            rows = [
                {name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{str(curve)!r} cannot be read as the curve of a training run: {error}") from None
    if not rows:
        raise BadInput(f"{str(curve)!r} has no rows yet; draw it when the training has written some")
    if absent := [name for name in MEASURES if any(row.get(name) is None for row in rows)]:
        raise BadInput(f"{str(curve)!r} lacks {absent[0]!r} in some row; give the curve.csv that training wrote")
    return rows


def _line(rows: Sequence[dict[str, Any]], name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """Million tokens, and the column times `scale`, where it has a value."""
    there = [row for row in rows if row[name] is not None]
    return [row["tokens"] / 1e6 for row in there], [scale * row[name] for row in there]


def _loss(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    x, y = _line(rows, "loss")
    axes.plot(x, y, color=INK)
    axes.set(title="loss per token (nats)", yscale="log")
    axes.yaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _last(axes, x, y, "{:.3f}")


def _rate(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    axes.plot(*_line(rows, "learning_rate", 1e3), color=INK)
    axes.set(title="learning rate, thousandths", ylim=(0, None))


def _answers(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    x, y = _line(rows, "answer_accuracy", 100)
    axes.plot(x, y, color=INK)
    axes.set(title="answer tokens right, %", ylim=(-5, 105))
    _last(axes, x, y, "{:.0f}")


def _load(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    x, most = _line(rows, "greatest_expert_share", 100)
    _, least = _line(rows, "least_expert_share", 100)
    axes.fill_between(x, least, most, color=PALE, linewidth=0)
    axes.set(title="most and least chosen expert, %", ylim=(0, None))
    axes.plot(x, most, color=INK)
    axes.plot(x, least, color=INK)
    _last(axes, x, most, "most {:.0f}")
    _last(axes, x, least, "least {:.1f}")


def _family(axes: Axes, rows: Sequence[dict[str, Any]], family: str) -> None:
    x, y = _line(rows, family, 100)
    axes.plot(x, y, color=INK, marker="o", markersize=3)
    axes.set(title=f"{family}, % right", ylim=(-5, 105))
    axes.set_yticks([0, 50, 100])
    if family in FAMILIES and chance(family):
        axes.axhline(100 * chance(family), color="black", linestyle=":", linewidth=0.9)
    _last(axes, x, y, "{:.0f}")


def _last(axes: Axes, x: Sequence[float], y: Sequence[float], form: str) -> None:
    """Writes the last value beside the end of its line."""
    if x:
        axes.annotate(form.format(y[-1]), (x[-1], y[-1]), (4, 0), textcoords="offset points", va="center", color=INK)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the picture."""
    parser = argparse.ArgumentParser(prog="python -m mcbench.reference.curve", description=picture.__doc__)
    parser.add_argument("csv", type=Path, help="the curve.csv of a training run")
    parser.add_argument("out", type=Path, help="the SVG to write")
    chosen = parser.parse_args(arguments)
    try:
        picture(chosen.csv, chosen.out)
    except BadInput as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
