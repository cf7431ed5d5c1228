"""Figures show what the records say, in files that are equal for equal records."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from records import sample_perplexity, sample_record, sample_result, with_bits

from mcbench.allocation import BitAllocation
from mcbench.cli import main
from mcbench.errors import BadInput, NotInstalled, UnknownName
from mcbench.figure import COLOURS, KINDS, figure, front, style
from mcbench.page import SIGNIFICANCE
from mcbench.record import FILE_NAME, Record


def runs() -> list[Record]:
    """Two methods at three budgets each, and three seeds of a third at one."""
    grid = [(method, bits) for method in ("pmq", "fnorm") for bits in (2.0, 2.2, 2.4)]
    made = [at_bits(method, bits, 7.5 - bits + 0.1 * (method == "fnorm")) for method, bits in grid]
    return made + [at_bits(f"random(seed={seed})", 2.2, 9.0 + seed) for seed in range(3)]


def at_bits(method: str, bits: float, perplexity: float) -> Record:
    results = (sample_perplexity(value=perplexity), sample_result())
    record = sample_record(method=f"{method}+gptq", asked=method, results=results)
    return with_bits(record, asked=bits, stored=bits + 3)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    for at, record in enumerate(runs()):
        record.save(tmp_path / "runs" / str(at) / FILE_NAME)
    return tmp_path / "runs"


def draw(kind: str, records: Path, **settings: Any) -> str:
    """The kind of figure as SVG."""
    pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra 'figures'")
    out = records.parent / f"{kind}.svg"
    figure(kind, [records], out, **settings)
    return out.read_text()


def texts(svg: str) -> list[str]:
    return [text for node in ElementTree.fromstring(svg).iter() if (text := (node.text or "").strip())]


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_is_what_brute_force_says(higher: bool) -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        points = [(float(b), float(v)) for b, v in rng.integers(0, 6, (12, 2))]
        sign = 1 if higher else -1
        good = [(-bits, sign * value) for bits, value in points]
        expected = {
            at
            for at, mine in enumerate(good)
            if not any(o != mine and o[0] >= mine[0] and o[1] >= mine[1] for o in good)
        }
        assert set(front(points, higher_is_better=higher)) == expected


def test_the_tradeoff_names_methods_without_seeds_and_both_axes(records: Path) -> None:
    svg = draw("tradeoff", records)
    shown = texts(svg)
    assert {"pmq+gptq", "fnorm+gptq", "random+gptq", "Pareto front", "stored bits per weight"} <= set(shown)
    assert "mini-perplexity (perplexity, n = 40)" in shown
    assert "random(seed=1)+gptq" not in shown


def test_no_two_of_many_series_look_alike() -> None:
    assert len({style(at)[1:] for at in range(64)}) == 64


def test_every_series_has_a_marker_of_its_own(records: Path) -> None:
    """Print without colour: markers differ, not just colours."""
    svg = draw("tradeoff", records)
    groups = [node for node in ElementTree.fromstring(svg).iter() if node.get("id", "").startswith("line2d")]
    paths = {
        (node.get("d") or "")
        for group in groups
        for node in group.iter()
        if node.tag.endswith("path") and node.get("id")
    }
    assert len(paths) >= 3
    grey = [sum(w * int(c[i : i + 2], 16) for w, i in ((0.3, 1), (0.59, 3), (0.11, 5))) for c in COLOURS]
    assert max(grey) < 170  # no colour is too pale on white


@pytest.mark.parametrize("kind", ["tradeoff", "allocation"])
def test_equal_records_are_equal_files(records: Path, kind: str) -> None:
    assert draw(kind, records) == draw(kind, records)
    for name in ("one.png", "two.png"):
        figure(kind, [records], records.parent / name)
    assert (records.parent / "one.png").read_bytes() == (records.parent / "two.png").read_bytes()
    assert (records.parent / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_allocation_writes_the_width_of_every_expert(records: Path) -> None:
    shown = texts(draw("allocation", records, methods=["pmq"], bits=2.2))
    assert [text for text in shown if text in {"1", "2", "3"}].count("2") >= 4
    assert "pmq+gptq" in shown
    assert "fnorm+gptq" not in shown


def test_significance_is_drawn_where_it_stands_beside_the_tables(records: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no statistics of the experts of 'reference'.*significance\.py"):
        draw("significance", records, statistics=tmp_path)
    numbers = {
        "name": "reference", "model": "a" * 64, "data_source": "a text", "tokens": 200, "bits": 2,
        "token_count": [[10, 20, 30, 40]] * 2, "routing_weight": [[1, 2, 3, 4]] * 2,
        "block_error": {"rounding": [[1, 2, 2, 9]] * 2},
    }  # fmt: skip
    path = tmp_path / SIGNIFICANCE
    path.parent.mkdir()
    path.write_text(json.dumps([numbers]))
    shown = texts(draw("significance", records, statistics=tmp_path))
    assert {"5.00", "15.0", "20.0"} <= set(shown)  # 10, 30 and 40 of 200 tokens
    assert "4.50" in shown  # 9 is 4.5 times the median of its layer


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "tradeof"}, UnknownName, "no figure is called 'tradeof'; did you mean 'tradeoff'"),
        ({"score": "mini-piqua"}, UnknownName, "no score is called 'mini-piqua' here; did you mean 'mini-piqa'"),
        ({"methods": ["pqm"]}, UnknownName, "no run here is of the method 'pqm'; did you mean 'pmq'"),
        ({"bits": 3.0}, BadInput, "no run here was asked for 3 bits; there are 2, 2.2, 2.4"),
        ({"table": 2}, BadInput, "there is no table 2; there is 1 reference"),
        ({"out": Path("picture.jpg")}, BadInput, "neither .svg nor .png"),
    ],
    ids=["kind", "score", "method", "bits", "table", "format"],
)
def test_a_typo_is_named_with_what_there_is(
    records: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    asked = {"kind": "tradeoff", "out": records.parent / "x.svg", **settings}
    with pytest.raises(error, match=message):
        figure(asked.pop("kind"), [records], **asked)
    assert not (records.parent / "x.svg").exists()


def test_of_several_tables_one_is_chosen(records: Path) -> None:
    other = dataclasses.replace(sample_record().model, name="another", digest="9" * 64)
    sample_record(model=other).save(records / "other" / FILE_NAME)
    with pytest.raises(BadInput, match=r"2 tables; choose one with --table: 1 another .*; 2 reference"):
        figure("tradeoff", [records], records.parent / "x.svg")
    assert "another (MixtralForCausalLM)" in texts(draw("tradeoff", records, table=1))


def test_too_many_heat_maps_are_refused(tmp_path: Path) -> None:
    for at in range(17):
        sample_record(method=f"m{at}").save(tmp_path / "runs" / str(at) / FILE_NAME)
    with pytest.raises(BadInput, match="17 heat maps are more than 16; choose with --methods or --bits"):
        figure("allocation", [tmp_path / "runs"], tmp_path / "x.svg")


def test_the_uncompressed_model_alone_is_nothing_to_draw(tmp_path: Path) -> None:
    kept = BitAllocation(np.full((2, 4), 16), attention=16, shared=16)
    whole = with_bits(sample_record(method="none", allocation=kept), expert=16.0, label=16.0)
    whole.save(tmp_path / "runs" / FILE_NAME)
    for kind in KINDS[:2]:
        with pytest.raises(BadInput, match="no compressed model to draw"):
            figure(kind, [tmp_path / "runs"], tmp_path / "x.svg")


def test_without_matplotlib_the_error_names_the_extra(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for kind in KINDS[:2]:
        with pytest.raises(NotInstalled, match=r"matplotlib.*\[figures\]"):
            figure(kind, [records], records.parent / "x.svg", bits=2.0)


def test_the_command_draws_and_says_what(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra 'figures'")
    out = records.parent / "t.svg"
    assert main(["figure", "tradeoff", str(records), "--out", str(out), "--methods", "pmq,fnorm"]) == 0
    assert (
        capsys.readouterr().out
        == f"wrote {out}: mini-perplexity of 6 runs against stored bits, 3 on the Pareto front\n"
    )
    assert main(["figure", "tradeoff", str(records), "--methods", "nothing"]) == 2
    assert "no run here is of the method 'nothing'" in capsys.readouterr().err
