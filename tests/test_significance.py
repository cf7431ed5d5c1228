"""The figures of expert significance: closed forms of their measures, and pictures that show what was measured."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scripts import script
from tiny import tiny_folder

from mcbench.errors import BadInput

ROOT = Path(__file__).parents[1]
RELEASED = ROOT / "tests" / "fixtures" / "mcmoe-release" / "statistics.csv"
COLUMNS = "layer,expert,act_count,act_weight_sum,eps_1bit,eps_2bit,eps_3bit"  # as the script expects them


significance = script("significance")


def drawn(layers: int = 3, experts: int = 6, **changed: Any) -> Any:
    """Invented statistics of a model."""
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {
        "name": "invented",
        "tokens": 50 * experts,
        "top_k": 2,
        "token_count": np.tile(np.repeat([50, 150], experts // 2), (layers, 1)),
        "routing_weight": rng.uniform(1, 40, (layers, experts)),
        "errors": {"one": rng.uniform(1, 2000, (layers, experts))},
        "origin": {"data_source": "nowhere"},
    }
    return significance.Significance(**(settings | changed))


def written(path: Path) -> list[str]:
    """Every piece of text in an SVG."""
    return [text for node in ElementTree.parse(path).iter() if (text := (node.text or "").strip())]


@pytest.mark.parametrize("n", [2, 8, 32])
def test_gini_and_entropy_have_their_closed_forms(n: int) -> None:
    even, one, ramp = np.full(n, 7), np.eye(n)[0] * 5, np.arange(1, n + 1)
    assert significance.gini(even) == pytest.approx(0, abs=1e-12)
    assert significance.gini(one) == pytest.approx((n - 1) / n)
    assert significance.gini(ramp[::-1]) == pytest.approx((n - 1) / (3 * n))
    assert significance.entropy(even) == pytest.approx(np.log2(n))
    assert significance.entropy(one) == 0


def test_gini_is_half_the_mean_difference_of_two_experts_over_their_mean() -> None:
    load = np.random.default_rng(1).integers(0, 100, 16)
    assert significance.gini(load) == pytest.approx(by_pairs(load.tolist()))


def by_pairs(load: list[float]) -> float:
    mean = sum(load) / len(load)
    return sum(abs(a - b) for a, b in product(load, load)) / (2 * mean * len(load) ** 2)


def test_a_model_is_measured_drawn_and_tabulated(tmp_path: Path) -> None:
    shown = significance.measured(str(tiny_folder(tmp_path / "tiny")), samples=2)
    assert shown.token_count.sum(1).tolist() == [shown.tokens * shown.top_k] * 3
    significance.write([shown], tmp_path / "out")
    texts = written(tmp_path / "out" / "significance-tiny.svg")
    assert {"layer 0", "layer 1", "layer 2"} <= set(texts)
    titles = ("activation frequency", "routing weight", "block error at 2 bits, min-max rounding")
    assert {*titles, "block error at 2 bits, gptq"} <= set(texts)
    assert significance.short(100 * shown.token_count[1, 2] / shown.tokens) in texts
    assert all(significance.short(error[2, 5]) in texts for error in shown.errors.values())
    (numbers,) = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert numbers["token_count"] == shown.token_count.tolist()
    assert numbers["block_error"]["gptq"] == shown.errors["gptq"].tolist()
    page = (tmp_path / "out" / "README.md").read_text()
    assert "(significance-tiny.svg)" in page
    assert "No published statistics" in page
    assert str(tmp_path) not in page + json.dumps(numbers)


def test_the_table_says_how_uneven_each_layer_is() -> None:
    shown = drawn(layers=1)
    (row,) = significance.by_layer(shown)
    assert (row["least_frequency"], row["greatest_frequency"]) == (pytest.approx(1 / 6), pytest.approx(1 / 2))
    assert row["gini"] == pytest.approx(1 / 4)
    error = shown.errors["one"]
    assert row["error_ratio"] == {"one": pytest.approx(error.max() / error.min())}
    assert "| 0       | 16.7      | 50.0         | 0.250  | 2.396 " in significance.section(shown)


def test_what_is_unknown_is_blank_and_what_was_not_seen_is_said() -> None:
    count = np.array([[0, 50, 50, 100, 200, 200]] * 3)
    other = drawn(name="other", errors={"two": np.zeros((3, 6))}, token_count=count)
    row = significance.overview([drawn(), other]).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")][-3:-1] == ["", ""]  # not measured; divided by zero
    assert "Experts without a token: 3" in significance.section(other)
    assert "without a token" not in significance.section(drawn())


def test_equal_numbers_are_equal_files_and_small_ones(tmp_path: Path) -> None:
    large = drawn(layers=32, experts=8, origin={}, errors={"one": np.ones((32, 8))})
    for name in ("first", "second"):
        significance.picture(large, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "first").stat().st_size < 200_000


def test_cells_of_many_experts_stay_empty(tmp_path: Path) -> None:
    shown = drawn(experts=32)
    significance.picture(shown, tmp_path / "many.svg")
    texts = written(tmp_path / "many.svg")
    assert "layer 2" in texts
    assert significance.short(shown.errors["one"][0, 0]) not in texts


def test_models_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="same name"):
        significance.write([drawn(), drawn(name="Invented")], tmp_path)


# ---- published statistics


def release(path: Path, layers: int = 2, experts: int = 4, leave_out: int = 0) -> Path:
    """Invented statistics in the form of MC-MoE's."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "expert", "act_count", "act_weight_sum", "eps_1bit", "eps_2bit", "eps_3bit"])
        rows = [[i, e, 1001 + 2 * e, 300.123 + e, 9, 5.0625 * (e + 1), 1] for i, e in np.ndindex(layers, experts)]
        writer.writerows(rows[: len(rows) - leave_out])
    return path


def test_published_statistics_are_summarised_and_not_copied(tmp_path: Path) -> None:
    shown = significance.published(release(tmp_path / "stats.csv"))
    assert (shown.tokens, shown.errors["min-max rounding"][1].tolist()) == (2008, [5.0625, 10.125, 15.1875, 20.25])
    significance.write([shown], tmp_path / "out")
    numbers = (tmp_path / "out" / "figures.json").read_text()
    page = (tmp_path / "out" / "README.md").read_text()
    (summary,) = json.loads(numbers)
    assert summary["layers"][1]["error_ratio"] == {"min-max rounding": 4}
    assert "MC-MoE's released statistics" in summary["source"]
    assert summary["source"] in page
    assert "No published statistics" not in page
    assert not list((tmp_path / "out").glob("*.svg"))
    for value in ("300.123", "1003", "10.125", "10.1"):
        assert value not in numbers + page


@pytest.mark.parametrize("leave_out", [1, 8], ids=["an expert", "everything"])
def test_incomplete_published_statistics_are_refused(tmp_path: Path, leave_out: int) -> None:
    with pytest.raises(BadInput, match=r"stats.csv.* is "):
        significance.published(release(tmp_path / "stats.csv", leave_out=leave_out))


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("layer,expert\n0,0\n")
    with pytest.raises(BadInput, match="act_count"):
        significance.published(tmp_path / "other.csv")


def test_the_load_of_the_real_mixtral_is_what_its_released_counts_say(tmp_path: Path) -> None:
    path = tmp_path / "expert_stats.csv"
    _, *rows_of_experts = RELEASED.read_text().splitlines()
    path.write_text("\n".join([COLUMNS, *rows_of_experts]))
    shown = significance.published(path)
    rows = significance.by_layer(shown)
    assert (len(rows), shown.tokens) == (32, 128 * 2048)
    with path.open(newline="") as file:
        released = list(csv.DictReader(file))
    for row in rows:
        load = [float(line["act_count"]) for line in released if int(line["layer"]) == row["layer"]]
        error = [float(line["eps_2bit"]) for line in released if int(line["layer"]) == row["layer"]]
        assert row["gini"] == pytest.approx(by_pairs(load))
        assert row["error_ratio"] == {"min-max rounding": pytest.approx(max(error) / min(error))}
    assert "| Mixtral-8x7B | 32 x 8, top-2      | 25.0 " in significance.overview([shown])
