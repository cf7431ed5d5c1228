"""Writes the card of a reference model from its recipe, its training curve and the record of its 16-bit scores.

    python benchmarks/model_card.py reference leaderboards/records/reference/none/record.json \
        leaderboards/figures/figures.json

The last file is what `significance.py` wrote; the load of the experts comes from there.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcbench.errors import BadInput, UnknownName
from mcbench.files import write_whole
from mcbench.leaderboard import pipe_table
from mcbench.record import Record
from mcbench.reference import folder
from mcbench.report import metric_name, number, with_error

CARD = "README.md"
KINDS = {
    "mixtral": "Mixtral's architecture (few large experts)",
    "qwen2_moe": "Qwen2-MoE's architecture (many small experts and a shared one)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks the card; returns 0 when done, 1 where `--check` finds another text, 2 on wrong input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", help="a shipped model")
    parser.add_argument("record", type=Path, help="the record of the uncompressed model")
    parser.add_argument("figures", type=Path, help="figures.json of significance.py")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the card is another text")
    options = parser.parse_args(arguments)
    try:
        path = folder(options.model) / CARD
        text = card(options.model, Record.load(options.record), _load_of(options.figures, options.model))
    except (BadInput, UnknownName) as error:
        print(f"model_card: {error}", file=sys.stderr)  # noqa: T201 - a script
        return 2
    if options.check:
        return int(not path.exists() or path.read_text(encoding="utf-8") != text)
    write_whole(path, text.encode())
    return 0


def card(name: str, record: Record, load: Mapping[str, Any]) -> str:
    """The Markdown of a shipped model's card; BadInput where record or figures are of other weights."""
    where = folder(name)
    config, recipe = (json.loads((where / file).read_text()) for file in ("config.json", "recipe.json"))
    with (where / "curve.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    if load["model"] != record.model.digest:
        raise BadInput(f"the record of {name!r} is of weights {record.model.digest[:12]}, the figures of others")
    count = record.model.count
    labelled = count.routed + count.shared + count.attention
    lengths = sorted({n for phase in recipe["curriculum"] for n in phase["rows"].values()})
    shared = f", and a shared one of width {recipe['shared_width']}" if recipe["shared_width"] else ""
    facts = [
        ("class", f"`{record.model.architecture}` of transformers: {KINDS[config['model_type']]}"),
        ("layers", f"{record.model.layers} of width {config['hidden_size']}"),
        (
            "attention",
            f"{config['num_attention_heads']} heads of {config['head_dim']}, {config['num_key_value_heads']} key-value "
            f"head; {100 * count.attention / labelled:.2f} % of the weights that the bit label counts",
        ),
        (
            "experts",
            f"{record.model.experts} a layer of width {recipe['expert_width']}, {record.model.top_k} chosen{shared}",
        ),
        ("parameters", f"{count.parameters:,}, of which {count.routed:,} in routed experts"),
        ("vocabulary", f"{config['vocab_size']} tokens: words, single digits, signs, and 256 bytes for any other text"),
        ("context", f"{config['max_position_embeddings']}; trained on rows of {lengths[0]} to {lengths[-1]} tokens"),
        (
            "trained on",
            f"{int(last['tokens']) / 1e6:.1f} million tokens of a world of {recipe['people']:,} people, in "
            f"{int(last['seconds']) / 60:.0f} minutes on one core of a busy machine; last "
            f"loss {float(last['loss']):.3f} nats a token",
        ),
        ("stored", f"bf16, {(where / 'model.safetensors').stat().st_size / 1e6:.1f} MB"),
    ]
    scores = [
        [
            result.task.removeprefix("mini-"),
            metric_name(result),
            with_error(result, result.value, result.standard_error),
            str(result.n),
            number(result, result.chance),
            result.counterpart,
        ]
        for result in record.results
    ]
    layers = [
        [
            str(layer["layer"]),
            f"{100 * layer['least_frequency'] / record.model.top_k:.1f}",
            f"{100 * layer['greatest_frequency'] / record.model.top_k:.1f}",
            f"{layer['gini']:.2f}",
        ]
        for layer in load["layers"]
    ]
    return "\n".join(
        [
            f"# {name}",
            "",
            INTRODUCTION,
            "",
            pipe_table(["", "what"], facts),
            "",
            "## What it scores in 16 bits",
            "",
            "Held-out items, with standard errors. Training and its recipe were chosen on development items, made of",
            "other facts. Crowded BoolQ-like passages and needles beyond 1024 tokens were added when reference-fine",
            "had answered all test items of the former, easier kind.",
            "",
            pipe_table(["family", "metric", "score", "n", "chance", "stands for"], scores),
            "",
            "## Load of its experts",
            "",
            "The share of choices in % that the least and the most used expert of each layer receive on calibration",
            f"text (even: {100 / record.model.experts:.1f}), and the Gini coefficient of the shares.",
            "",
            pipe_table(["layer", "least", "most", "Gini"], layers),
            "",
            "## How it was made",
            "",
            f"    python -m mcbench.reference.train --preset {name} --threads 1",
            "",
            HOW,
            "",
            "![Loss, load of the experts and accuracy by family over the training](curve.svg)",
            "",
            "## What to know before quoting it",
            "",
            CAVEATS,
            "",
        ]
    )


INTRODUCTION = """A mixture of experts, small and really trained, on a generated English-like world. It exists to
measure what compression costs where nothing can be downloaded; it knows nothing of the real world."""
HOW = """`recipe.json` holds every setting, `curve.csv` the loss, the load of the experts and the accuracy by family
over time, and `curve.svg` is its picture. Text is generated from the seed as training goes; schedules count steps.
Training starts with copies, keys and values in short rows, without which retrieval does not appear, and goes on with
the whole mixture. Numerical results differ in the last digits between processors and library versions, so a rebuilt
model is a sibling, not the same bits."""
CAVEATS = """- It is one seed of one small model. A ranking of methods on it is a lead, not a finding about large ones.
- Families are solved by construction: an oracle that knows the world answers every item, so what is lost in 16 bits
  is lost to difficulty.
- The text is generated and carries no licence of others."""


def _load_of(path: Path, name: str) -> dict[str, Any]:
    """The entry of a model in figures.json."""
    try:
        found: dict[str, Any] = next(each for each in json.loads(path.read_text()) if each["name"] == name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise BadInput(f"{str(path)!r} holds no figures of {name!r}; make them with significance.py") from error
    return found


if __name__ == "__main__":
    sys.exit(main())
