"""Findings are computed as they are told: pooled item by item, against the baselines they name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scripts import script
from tiny import tiny_folder

from mcbench.composition import compose
from mcbench.model import load_model
from mcbench.task import Scores

ROOT = Path(__file__).parents[1]


findings = script("findings")


def right(*values: float) -> Scores:
    samples = tuple({"id": str(at), "correct": value} for at, value in enumerate(values))
    return Scores("choice", "choice@1", "acc", True, sum(values) / len(values), len(values), samples=samples)


def lost(*values: float) -> Scores:
    samples = tuple({"id": str(at), "loss": value, "tokens": 1} for at, value in enumerate(values))
    perplexity = math.exp(sum(values) / len(values))
    return Scores("text", "text@1", "perplexity", False, perplexity, len(values), samples=samples)


def test_rank_correlation_has_its_closed_forms() -> None:
    one = np.array([3.0, 1.0, 4.0, 1.5, 5.0])
    assert findings.rank_correlation(one, one**3) == pytest.approx(1)
    assert findings.rank_correlation(one, -one) == pytest.approx(-1)
    assert findings.rank_correlation(one, np.ones(5)) == 0
    # without ties: 1 - 6 sum d^2 / (n (n^2 - 1)), here d = (0, 1, 1, 0, 0)
    assert findings.rank_correlation([1, 2, 3, 4, 5], [1, 3, 2, 4, 5]) == pytest.approx(1 - 6 * 2 / 120)


def test_answers_are_averaged_item_by_item_and_perplexity_geometrically() -> None:
    merged = findings.merge([right(1, 0, 1), right(0, 0, 1)])
    assert [row["correct"] for row in merged.samples] == [0.5, 0, 1]
    assert merged.value == pytest.approx(0.5)
    both = findings.merge([lost(1.0, 2.0), lost(3.0, 0.0)])
    assert both.value == pytest.approx(math.sqrt(math.exp(1.5) * math.exp(1.5)))


def test_a_change_is_paired_and_its_spread_is_that_of_the_seeds() -> None:
    mine = [{"choice": right(1, 1, 0, 0)}, {"choice": right(1, 1, 1, 0)}]
    base = [{"choice": right(1, 0, 0, 0)}, {"choice": right(1, 0, 0, 0)}]
    change = findings.changes(mine, base)["choice"]
    deltas = np.array([0, 1, 0.5, 0])  # of each item, averaged over the two seeds
    assert change.value == pytest.approx(deltas.mean())
    assert change.error == pytest.approx(deltas.std(ddof=1) / 2)
    assert change.spread == pytest.approx(np.std([0.25, 0.5], ddof=1))


def test_the_methods_of_every_study_compose() -> None:
    for case in findings.cases(findings.STUDIES, [2.05]):
        assert compose(case.method).compresses
        for base in findings.baselines(case):
            compose(base.method)


def test_a_small_study_runs_resumes_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny_folder(tmp_path / "tiny"))
    bits = f"{load_model(folder).weight_count().label(2.0):.4f}"
    arguments = ["run", "--model", folder, "--studies", "allocation,why", "--bits", bits, "--seeds", "0,1"]
    arguments += [
        "--samples",
        "2",
        "--limit",
        "2",
        "--tasks",
        "mini-perplexity,mini-piqa",
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert findings.main([*arguments, "--out", str(tmp_path / "one.json")]) == 0
    assert findings.main([*arguments, "--out", str(tmp_path / "two.json")]) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two
    names = {row["name"] for row in one["summary"]}
    assert {"uniform", "pmq", "output-kl", "fnorm"} <= names
    uniform = next(row for row in one["summary"] if row["name"] == "uniform")
    assert "uniform" not in uniform["differences"]
    assert findings.main(["tell", str(tmp_path / "one.json"), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "tiny.md").read_text()
    assert "| output-kl" in page
    assert "PMQ's product, as released" in page
    capsys.readouterr()


def test_what_is_asked_wrongly_is_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert findings.main(["run", "--studies", "alocation", "--out", str(tmp_path / "x.json")]) == 2
    assert "alocation" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{}")
    assert findings.main(["tell", str(tmp_path / "bad.json")]) == 2
    assert "bad.json" in capsys.readouterr().err
