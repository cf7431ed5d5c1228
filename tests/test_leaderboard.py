"""Tables come from records alone, and only comparable runs share one."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import sample_perplexity, sample_record, sample_result, with_bits, with_routing

from mcbench.allocation import BitAllocation
from mcbench.comparable import unlike
from mcbench.errors import BadInput, CheckFailed
from mcbench.leaderboard import CSV, LATEX, MARKDOWN, SPEED_CSV, leaderboard, render, tabulate_records
from mcbench.record import FILE_NAME, Record, _digest


def uncompressed(**changes: Any) -> Record:
    kept = BitAllocation(np.full((2, 4), 16), attention=16, shared=16)
    results = (
        sample_perplexity(value=6.0, baseline=None, difference=None, difference_error=None),
        sample_result(value=0.7, k=70, baseline=None, difference=None, difference_error=None),
    )
    settings: dict[str, Any] = {
        "method": "none", "allocation": kept, "calibration": None, "baseline": "", "fingerprint": "b" * 64,
        "results": results,
    }  # fmt: skip
    record = sample_record(**{**settings, **changes})
    return with_bits(record, asked=None, asked_as="", expert=16.0, label=16.0, whole_model=16.0, stored=16.0)


def changed_allocation(**changes: Any) -> Record:
    return sample_record(allocation=dataclasses.replace(sample_record().allocation, **changes))


def saved(folder: Path, *records: Record) -> Path:
    for number, record in enumerate(records):
        record.save(folder / str(number) / FILE_NAME)
    return folder


def tables_of(*records: Record) -> list[list[str]]:
    """The methods in each table."""
    return [[record.method for record in table.records] for table in tabulate_records(records)[0]]


def test_comparable_runs_share_a_table_with_the_uncompressed_model_first() -> None:
    other = with_bits(sample_record(method="fnorm+gptq"), stored=6.5)
    assert tables_of(sample_record(), other, uncompressed()) == [["none", "fnorm+gptq", "pmq+gptq"]]


@pytest.mark.parametrize(
    "unlike",
    [
        sample_record(model=dataclasses.replace(sample_record().model, digest="9" * 64)),
        sample_record(evaluation={"dtype": "bfloat16"}),
        sample_record(calibration=dataclasses.replace(sample_record().calibration, digest="9" * 64)),  # type: ignore[type-var]
        changed_allocation(attention=8),
        changed_allocation(shared=8),
        sample_record(results=(sample_perplexity(), sample_result(protocol="mini-piqa@99999999"))),
    ],
    ids=["weights", "dtype", "calibration", "attention", "shared", "protocol"],
)
def test_unlike_runs_never_share_a_table(unlike: Record) -> None:
    unlike = dataclasses.replace(unlike, method="unlike")
    assert sorted(tables_of(sample_record(), unlike)) == [["pmq+gptq"], ["unlike"]]


def test_the_uncompressed_model_stands_in_every_table_that_it_fits() -> None:
    other = dataclasses.replace(changed_allocation(attention=8), method="other")
    assert sorted(tables_of(sample_record(), other, uncompressed())) == [["none", "other"], ["none", "pmq+gptq"]]


def test_a_method_without_calibration_fits_any_calibration() -> None:
    plain = sample_record(method="uniform+rtn", calibration=None)
    assert tables_of(plain, sample_record()) == [["pmq+gptq", "uniform+rtn"]]


def test_what_was_not_measured_is_blank_and_has_no_mean() -> None:
    three = ("mini-piqa", "mini-boolq", "mini-mmlu")
    full = sample_record(results=tuple(sample_result(task) for task in three))
    part = sample_record(method="less", results=tuple(sample_result(task) for task in three[:2]))
    (table,), _ = tabulate_records([full, part])
    (columns,) = table.means().values()
    assert len(columns) == 3
    assert table.mean(full, columns) == pytest.approx((0.6, 0.049 / 3**0.5))
    assert table.mean(part, columns) is None
    row = next(line for line in render([table])[MARKDOWN].splitlines() if line.startswith("| less"))
    assert [cell.strip() for cell in row.split("|")][-3:] == ["", "", ""]


def test_different_metrics_are_never_averaged() -> None:
    results = (sample_perplexity(), sample_result(), sample_result("mini-gsm8k", metric="exact_match"))
    (table,), _ = tabulate_records([sample_record(results=results)])
    assert table.means() == {}


def test_partial_records_are_left_out_with_a_note() -> None:
    partial = sample_record(results=(sample_result(partial=True),))
    tables, notes = tabulate_records([partial, sample_record()])
    assert [len(table.records) for table in tables] == [1]
    assert notes == ["left out: 1 record partial (--limit)"]


def test_of_two_runs_of_the_same_the_newer_counts() -> None:
    newer = sample_record(created="2026-02-02T03:04:05+00:00")
    tables, notes = tabulate_records([newer, sample_record()])
    assert tables[0].records == (newer,)
    assert notes == ["left out: 1 record older than another of the same method, bits and seed"]


def test_seeds_are_told_apart(tmp_path: Path) -> None:
    leaderboard([saved(tmp_path / "runs", sample_record(), sample_record(seed=1))], tmp_path / "out")
    assert "pmq+gptq, seed 1" in (tmp_path / "out" / MARKDOWN).read_text()


def test_every_row_has_four_bit_figures_n_and_standard_errors() -> None:
    text = render(tabulate_records([sample_record()])[0])[MARKDOWN]
    row = next(line for line in text.splitlines() if line.startswith("| pmq"))
    assert [cell.strip() for cell in row.split("|")][2:9] == [
        "2.4", "2.000", "2.400", "5.690", "6.100", "7.500 ± 0.300", "60.0 ± 4.9",
    ]  # fmt: skip
    assert "mini-piqa (acc %, n = 100)" in text


def test_the_csv_has_one_line_for_each_score() -> None:
    lines = list(csv.DictReader(io.StringIO(render(tabulate_records([sample_record(), uncompressed()])[0])[CSV])))
    assert [(line["method"], line["task"]) for line in lines] == [
        ("none", "mini-perplexity"), ("none", "mini-piqa"), ("pmq+gptq", "mini-perplexity"), ("pmq+gptq", "mini-piqa"),
    ]  # fmt: skip
    assert (lines[3]["value"], lines[3]["n"], lines[3]["difference"]) == ("0.6", "100", "-0.1")
    assert lines[0]["baseline"] == ""


def test_latex_is_booktabs_with_special_characters_escaped() -> None:
    text = render(tabulate_records([sample_record(method="pmq(error=minmax_1)+gptq")])[0])[LATEX]
    assert r"\toprule" in text
    assert r"minmax\_1" in text
    assert r"60.0 $\pm$ 4.9" in text
    assert r"acc \%" in text


def test_the_same_records_give_the_same_bytes_in_any_order() -> None:
    records = [sample_record(method=f"m{i}", seed=i % 3) for i in range(6)] + [uncompressed()]
    assert render(*tabulate_records(records)) == render(*tabulate_records(records[::-1]))


def test_the_check_passes_on_what_was_written_and_fails_on_a_change(tmp_path: Path) -> None:
    runs, out = saved(tmp_path / "runs", sample_record()), tmp_path / "out"
    with pytest.raises(CheckFailed, match=r"README\.md"):
        leaderboard([runs], out, check=True)
    assert not out.exists()
    leaderboard([runs], out)
    leaderboard([runs], out, check=True)
    (out / CSV).write_text((out / CSV).read_text().replace("0.6", "0.9"))
    with pytest.raises(CheckFailed, match=r"leaderboard\.csv: not what the records give"):
        leaderboard([runs], out, check=True)


def test_speeds_that_no_record_gives_any_more_fail_the_check_and_are_removed(tmp_path: Path) -> None:
    runs, out = saved(tmp_path / "runs", sample_record()), tmp_path / "out"
    leaderboard([runs], out)
    (out / SPEED_CSV).write_text("of other records\n")
    with pytest.raises(CheckFailed, match=r"speed\.csv: not what the records give"):
        leaderboard([runs], out, check=True)
    assert f"removed {out / SPEED_CSV}" in leaderboard([runs], out)
    leaderboard([runs], out, check=True)


def test_an_empty_selection_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(BadInput, match="no complete record"):
        leaderboard([tmp_path / "runs"], tmp_path / "out")
    with pytest.raises(BadInput, match="there is no record or folder"):
        leaderboard([tmp_path / "absent"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_baselines_that_differ_are_refused() -> None:
    other = sample_record(method="s", results=(sample_perplexity(), sample_result(baseline=0.75)))
    with pytest.raises(BadInput, match="two baselines differ in mini-piqa: 0.7 .* 0.75"):
        tabulate_records([sample_record(), other])


def test_one_damaged_record_stops_the_table(tmp_path: Path) -> None:
    runs = saved(tmp_path / "runs", sample_record(), sample_record(seed=1))
    (runs / "1" / FILE_NAME).write_text("{")
    with pytest.raises(BadInput, match="damaged or cut short"):
        leaderboard([runs], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_committed_tables_are_what_the_committed_records_give() -> None:
    board = Path(__file__).parent.parent / "leaderboards"
    assert leaderboard([board / "records"], board, check=True)


def test_policies_learnt_on_different_text_stand_apart() -> None:
    one, other = (
        dataclasses.replace(record, calibration=None)
        for text in ("a" * 64, "b" * 64)
        for record in [with_routing(sample_record(), provenance={"data": text}, tables={"threshold": [0.1]})]
    )
    assert unlike(one, other) == ["they were calibrated on different tokens"]
    assert unlike(one, one) == []
    fixed, again = (
        dataclasses.replace(record, routing=dataclasses.replace(record.routing, tables={}))
        for record in (one, other)
        if record.routing
    )
    assert unlike(fixed, again) == []  # what learns nothing fits anywhere


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_records_make_tables_in_seconds_and_show_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    outcomes = tuple(float(at % 3 > 0) for at in range(300))
    result = sample_result(value=2 / 3, n=300, k=200, outcomes=outcomes)
    for seed in range(count):
        (tmp_path / "runs" / str(seed)).mkdir(parents=True)
        text = sample_record(seed=seed, results=(result,)).to_json()
        (tmp_path / "runs" / str(seed) / FILE_NAME).write_text(text)
    digests: list[str] = []
    shown: list[tuple[str, int | None]] = []

    @contextlib.contextmanager
    def watched(label: str, total: int | None = None) -> Iterator[Callable[[], object]]:
        yield lambda: shown.append((label, total))

    def counted(content: Any) -> str:
        digests.append(_digest(content))
        return digests[-1]

    monkeypatch.setattr("mcbench.leaderboard.inner", watched)
    monkeypatch.setattr("mcbench.record._digest", counted)
    started = time.process_time()
    leaderboard([tmp_path / "runs"], tmp_path / "out")
    assert time.process_time() - started < 5 + count / 50
    assert shown == [("records", count)] * count
    assert len(digests) <= 2 * count  # one proves the file, one names the record
