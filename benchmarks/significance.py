"""How differently do the experts of a model matter? Their frequency, routing weight and error, drawn layer by layer.

    python benchmarks/significance.py --models reference,reference-fine --out leaderboards/figures

The pictures are those of MC-MoE's Figure 3. `--published` takes the statistics of every expert of Mixtral-8x7B that
MC-MoE released, as CSV (layer, expert, act_count, act_weight_sum, eps_2bit). Of these only summaries by layer are
shown: a picture of every expert would be a copy.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from mcbench.calibration import calibrate
from mcbench.composition import compose
from mcbench.errors import BadInput
from mcbench.fidelity import gini
from mcbench.figure import short
from mcbench.files import write_whole
from mcbench.model import load_model
from mcbench.reference.curve import drawing
from mcbench.significance import ratio
from mcbench.store import ExpertStore
from mcbench.text import SAMPLES, calibration_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
WIDTH = 2  # bits; of the paper's figure
PAPER = "min-max rounding"
SOURCE = "MC-MoE's released statistics of Mixtral-8x7B (github.com/Aaronhuang-778/MC-MoE), calibrated on C4"
TEXT_CELL = (0.56, 0.34)  # inches of a cell with its value
BARE_CELL = (0.24, 0.24)
MOST_EXPERTS, MOST_LAYERS = 8, 12  # with values in their cells
SHADES = 24


@dataclass(frozen=True)
class Significance:
    """What a figure shows of one model.

    token_count, routing_weight: [L, E] sums over the tokens that chose the expert, the weight before top-k
    renormalisation. errors: [L, E] by quantiser, the change of the block's output with this expert alone at 2 bits, a
    sum of one Frobenius norm per batch of sequences. origin: what else the numbers depend on.
    """

    name: str
    tokens: int
    top_k: int
    token_count: Array
    routing_weight: Array
    errors: dict[str, Array]
    origin: dict[str, Any] = field(default_factory=dict)
    published: bool = False

    @property
    def even(self) -> float:
        """The activation frequency of every expert if the load were even."""
        return self.top_k / int(self.token_count.shape[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="reference,reference-fine", help="names or folders by commas")
    parser.add_argument("--out", type=Path, default=Path("leaderboards/figures"), help="the folder to write to")
    parser.add_argument("--published", type=Path, help="MC-MoE's released statistics of Mixtral-8x7B, as CSV")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="sequences of calibration text")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration text")
    options = parser.parse_args()
    try:
        beside = [] if options.published is None else [published(options.published)]
        models = options.models.split(",")
        write([*(measured(name, options.samples, options.seed) for name in models), *beside], options.out)
    except (BadInput, LookupError) as error:
        parser.error(str(error))
    return 0


def measured(name: str, samples: int = SAMPLES, seed: int = 0) -> Significance:
    """The statistics of a model over the calibration text of the reference world."""
    model = load_model(name)
    data = calibration_data(model, samples=samples, seed=seed)
    quantizer = compose("pmq").owner("quantize")
    store = ExpertStore(model, data, quantizer.method, str(quantizer), (WIDTH,))
    errors = {PAPER: "minmax", str(quantizer): "final"}
    needs = [f"quantization_error:{kind}:batch-sum" for kind in errors.values()]
    stats = calibrate(model, data, needs, store=store, widths=(WIDTH,))
    return Significance(
        name=Path(name).name,  # of a folder, only what it is called
        tokens=stats.tokens,
        top_k=stats.top_k,
        token_count=stats.token_count,
        routing_weight=stats.routing_weight,
        errors={
            title: stats.quantization_error(kind, (WIDTH,), aggregation="batch-sum")[..., 0]
            for title, kind in errors.items()
        },
        origin={
            "model": model.digest(),
            "data": data.digest,
            "data_source": data.source,
            "fallbacks": list(stats.fallbacks),
        },
    )


def published(path: Path) -> Significance:
    """The statistics of Mixtral-8x7B in MC-MoE's release; BadInput where the file is not that."""
    columns = ("layer", "expert", "act_count", "act_weight_sum", "eps_2bit")
    try:
        with path.open(newline="") as file:
            rows = np.array([[float(row[name]) for name in columns] for row in csv.DictReader(file)])
        layers, experts = (int(rows[:, i].max()) + 1 for i in (0, 1))
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))].reshape(layers, experts, -1)  # [L, E, columns]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise BadInput(f"{str(path)!r} is no CSV of every expert's {', '.join(columns)} ({error!r})") from None
    count = rows[..., 2]
    top_k = 2
    if len(totals := set(count.sum(1).tolist())) > 1:
        raise BadInput(
            f"{str(path)!r} counts {len(totals)} different numbers of tokens in its layers; it is incomplete"
        )
    return Significance(
        name="Mixtral-8x7B",
        tokens=int(totals.pop() / top_k),
        top_k=top_k,
        token_count=count,
        routing_weight=rows[..., 3],
        errors={PAPER: rows[..., 4]},
        origin={"source": SOURCE},
        published=True,
    )


# ---- figures


def entropy(load: Array) -> float:
    """Entropy of a load in bits: log2 n when it is even over n experts, 0 when one expert bears all of it."""
    x = np.asarray(load, float)
    share = x[x > 0] / x.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0  # no -0


def by_layer(shown: Significance) -> list[dict[str, Any]]:
    """A row for each layer: how uneven the load of its experts is, and how far their errors lie apart."""
    return [
        {
            "layer": layer,
            "least_frequency": float(count.min() / shown.tokens),
            "greatest_frequency": float(count.max() / shown.tokens),
            "gini": gini(count),
            "entropy_bits": entropy(count),
            "error_ratio": {title: ratio(error[layer]) for title, error in shown.errors.items()},
        }
        for layer, count in enumerate(shown.token_count)
    ]


# ---- pictures


def picture(shown: Significance, out: Path) -> None:
    """Heat maps of layers by experts; values stand in the cells of a model of our own with few experts."""
    layers, experts = shown.token_count.shape
    written = experts <= MOST_EXPERTS and layers <= MOST_LAYERS
    width, height = TEXT_CELL if written else BARE_CELL
    panels = 2 + len(shown.errors)
    across = 1 if experts > MOST_EXPERTS else 2 if written else panels
    down = -(-panels // across)
    with drawing(out, across * (experts * width + 1.4), down * (layers * height + 1.0)) as figure:
        fields = iter(figure.subplots(down, across, squeeze=False).flat)
        frequency = 100 * shown.token_count / shown.tokens
        share = 100 * shown.routing_weight / shown.tokens
        heat(figure, next(fields), frequency, "activation frequency\n% of tokens", written)
        heat(figure, next(fields), share, "routing weight\n% of the router's total", written)
        for title, error in shown.errors.items():
            heat(figure, next(fields), error, f"block error at {WIDTH} bits, {title}", written, relative=True)


def heat(figure: Figure, axes: Axes, values: Array, title: str, written: bool, relative: bool = False) -> None:
    """One heat map of [L, E]. A `relative` one is coloured by the ratio to the layer's median, on a log scale."""
    import matplotlib
    from matplotlib.colors import LogNorm, Normalize

    layers, experts = values.shape
    shown = values / np.median(values, axis=1, keepdims=True) if relative else values
    norm = LogNorm(1 / 4, 4, clip=True) if relative else Normalize(0, max(values.max(), 2 * values.mean()))
    colours = matplotlib.colormaps["Blues"].resampled(SHADES)  # darker is more, also in grey
    mesh = axes.pcolormesh(shown, cmap=colours, norm=norm, edgecolors="white", linewidth=0.5, clip_on=False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.04, aspect=max(12, 2 * layers))
    bar.outline.set_visible(False)
    if relative:
        title += "\nshade: times the layer's median"
        bar.set_ticks([1 / 4, 1 / 2, 1, 2, 4], labels=["≤ 1/4", "1/2", "1", "2", "≥ 4"])
        bar.minorticks_off()
    axes.set(title=title, xlabel="expert", ylim=(layers, 0))
    across, down = 1 if experts <= MOST_EXPERTS else 4, 1 if layers <= 12 else 4
    axes.set_xticks(np.arange(0, experts, across) + 0.5, [f"{i}" for i in range(0, experts, across)])
    axes.set_yticks(np.arange(0, layers, down) + 0.5, [f"layer {i}" for i in range(0, layers, down)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (layer, expert), value in np.ndenumerate(values) if written else ():
        colour = "white" if norm(shown[layer, expert]) > 0.7 else "black"
        axes.text(expert + 0.5, layer + 0.5, short(value), ha="center", va="center", fontsize=8, color=colour)


# ---- files


def write(shown: Sequence[Significance], out: Path) -> None:
    """A picture of each model that was measured, figures.json with the numbers, and README.md with the tables."""
    if len({each.name.lower() for each in shown}) < len(shown):
        raise BadInput("two of the models have the same name, and so would their pictures; draw them one by one")
    for each in shown:
        if not each.published:
            picture(each, out / f"significance-{each.name.lower()}.svg")
    numbers = json.dumps([figures(each) for each in shown], indent=1)
    write_whole(out / "figures.json", f"{numbers}\n".encode())
    write_whole(out / "README.md", page(shown).encode())


def figures(shown: Significance) -> dict[str, Any]:
    """All that is drawn and tabulated of a model; of published statistics only the summary by layer."""
    tables = {
        "token_count": shown.token_count.tolist(),
        "routing_weight": shown.routing_weight.tolist(),
        "block_error": {title: error.tolist() for title, error in shown.errors.items()},
    }
    return {
        "name": shown.name,
        **shown.origin,
        "tokens": shown.tokens,
        "top_k": shown.top_k,
        "bits": WIDTH,
        "layers": by_layer(shown),
        **({} if shown.published else tables),
    }


def page(shown: Sequence[Significance]) -> str:
    """The Markdown beside the pictures: one table over all models, then a picture and a table of each."""
    missing = "" if any(each.published for each in shown) else MISSING
    return "\n".join([HEAD + missing, overview(shown), *map(section, shown)])


HEAD = f"""# How differently the experts matter

Made by `python benchmarks/significance.py`; do not edit. `figures.json` holds the numbers drawn, and of
published statistics their summary by layer.

- Activation frequency: share of the tokens that chose the expert. Gini and entropy are those of this load in a layer.
- Routing weight: sum of the router's probability before top-k renormalisation, over the tokens that chose the expert,
  divided by all tokens. What is left to 100 % went to experts that were not chosen.
- Block error: change of the MoE block's output when this expert alone has {WIDTH} bits, by the min-max rounding behind
  MC-MoE's statistics or by the quantiser that makes our compressed weights; a sum of one norm per batch of 8 sequences,
  as released. Texts and sizes differ between models: compare ratios within a layer, not errors.
"""
MISSING = "- No published statistics of Mixtral-8x7B were given (`--published`), so none stand beside these.\n"


def overview(shown: Sequence[Significance]) -> str:
    """One row for each model: mean over the layers, then the least and the greatest layer."""
    rows = []
    for each in shown:
        layers = by_layer(each)
        count, top = each.token_count.shape[1], np.log2(each.token_count.shape[1])
        ratios = [[layer["error_ratio"].get(title) for layer in layers] for title in titles(shown)]
        rows.append(
            [
                each.name,
                f"{len(layers)} x {count}, top-{each.top_k}",
                f"{100 * each.even:.1f}",
                f"{100 * min(layer['least_frequency'] for layer in layers):.1f}",
                f"{100 * max(layer['greatest_frequency'] for layer in layers):.1f}",
                spread([layer["gini"] for layer in layers], np.mean, "{:.3f}".format),
                spread([layer["entropy_bits"] / top for layer in layers], np.mean, "{:.3f}".format),
                *(spread(column, np.median, short) for column in ratios),
            ]
        )
    headers = [
        "model",
        "layers x experts",
        "even frequency %",
        "least %",
        "greatest %",
        "Gini, mean (range)",
        "entropy / log2 E, mean (range)",
        *(f"max/min error, median (range): {title}" for title in titles(shown)),
    ]
    return table(rows, headers)


def section(shown: Significance) -> str:
    """Picture and table of one model."""
    most = np.log2(shown.token_count.shape[1])
    headers = ["layer", "least %", "greatest %", "Gini", f"entropy, bits of {most:g}"]
    headers += [f"max/min error: {title}" for title in shown.errors]
    rows = [
        [
            layer["layer"],
            f"{100 * layer['least_frequency']:.1f}",
            f"{100 * layer['greatest_frequency']:.1f}",
            f"{layer['gini']:.3f}",
            f"{layer['entropy_bits']:.3f}",
            *("" if value is None else short(value) for value in layer["error_ratio"].values()),
        ]
        for layer in by_layer(shown)
    ]
    source = f"Computed from {SOURCE}" if shown.published else f"Calibrated on {shown.origin['data_source']}"
    text = f"{source}, {shown.tokens:,} tokens."
    if unseen := int((shown.token_count == 0).sum()):
        text += f" Experts without a token: {unseen}; their error is as if one average token had chosen them."
    link = "" if shown.published else f"![Heat maps of {shown.name}](significance-{shown.name.lower()}.svg)\n\n"
    return f"\n## {shown.name}\n\n{text}\n\n{link}{table(rows, headers)}"


def titles(shown: Sequence[Significance]) -> list[str]:
    return list(dict.fromkeys(title for each in shown for title in each.errors))


def spread(values: Sequence[float | None], middle: Callable[[list[float]], Any], form: Callable[[float], str]) -> str:
    """The middle of the layers' values and their range; blank where one is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    return f"{form(middle(known))} ({form(min(known))} to {form(max(known))})"


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return f"{tabulate(rows, headers=headers, tablefmt='github', disable_numparse=True)}\n"


if __name__ == "__main__":
    sys.exit(main())
