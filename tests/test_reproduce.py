"""A study of the papers is a grid that can be run, and what it says of an order follows from paired differences."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from records import with_routing
from runs import answers, windows, write_run
from scipy import stats as scipy_stats
from tiny import tiny_folder

from mcbench.calibration import calibrate
from mcbench.catalogue import TASKS, select_tasks
from mcbench.cli import main
from mcbench.composition import compose
from mcbench.costs import cell_by_cell
from mcbench.datasets import current_folder
from mcbench.errors import BadInput
from mcbench.figure import short
from mcbench.model import load_model
from mcbench.published import Figure
from mcbench.record import FILE_NAME, Environment, Record
from mcbench.reproduce import Line, Measured, _grids, kendall, order, report, reproduce, studies, study
from mcbench.speed import Arm, ArmName, Cell, Memory, Phase, Profile
from mcbench.sweep import Grid, Outcome, State
from mcbench.text import calibration_data


@pytest.mark.parametrize("name", [name for name, s in studies().items() if not s.refused])
def test_every_row_of_a_study_is_a_method_and_every_column_a_task(name: str) -> None:
    chosen = study(name)
    assert {line.key for line in chosen.lines()} == set(chosen.rows)
    assert all(compose(method).parts for method in chosen.rows.values())
    assert set(chosen.columns.values()) <= set(TASKS.names())
    if chosen.table and chosen.columns:  # every published figure of a column has its row
        shown = {*chosen.columns, chosen.mean, chosen.skipped}
        found = [f for f in chosen.figures if f.metric in shown]
        assert sum(len(set(line.published) & shown) for line in chosen.lines()) == len(found) > 0


def test_tau_is_that_of_scipy() -> None:
    rng = random.Random(0)
    for n in (2, 5, 9, 30):
        one, other = ([float(rng.randint(0, 5)) for _ in range(n)] for _ in range(2))
        one[0], one[1], other[0], other[1] = 0, 1, 2, 3
        assert kendall(one, other) == pytest.approx(scipy_stats.kendalltau(one, other).statistic)
    assert kendall([1, 1], [2, 3]) is None


def test_an_order_needs_two_standard_errors() -> None:
    assert order(1.0, 2.1, 1.0) == "holds" and order(-1.0, 2.1, 1.0) == "contradicted"
    assert order(1.0, 1.9, 1.0) == "cannot tell" and order(1.0, 5.0, None) == "cannot tell"


@pytest.mark.slow
def test_a_study_runs_from_end_to_end_and_says_that_it_is_partial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["reproduce", "table7", "--bits", "2.05", "--limit", "4", "--samples", "4", "--length", "64"]
    assert main([*asked, "--out", str(tmp_path), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "published, Mixtral-8x7B: ppl" in printed and "measured, reference: mini-perplexity" in printed
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if line.startswith("| ")}
    assert "5.91" in rows["PMQ"] and "6.65" in rows["Hessian(HAWQ-V2)"] and "3.84" in rows["FP16"]
    assert "±" in rows["PMQ"] and "**Partial**" in printed and "2.058" in printed  # the label's known error
    (pairs,) = [line for line in printed.splitlines() if line.startswith("| mini-perplexity")]
    assert sum(int(cell) for cell in pairs.split("|")[2:5]) == 3  # of three rows
    assert main([*asked, "--out", str(tmp_path), "--quiet", "--dry-run"]) == 0
    assert "to do" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [(["table77"], "did you mean 'table7'"), (["table8"], "OmniQuant"), (["table7", "--bits", "2.06"], "has no row"),
     (["latency", "--limit", "4"], "leave --limit out"), (["latency", "--dry-run"], "no runs to plan"),
     (["figure3", "--tasks", "quick"], "a study of experts"), (["figure3", "--bits", "2"], "leave --bits out"),
     (["figure9"], "nor what it draws"), (["seqlen", "--tasks", "quick"], "leave --tasks out"),
     (["table7", "--grid", "1x8+2"], "times nothing"), (["latency", "--grid", "1x8"], "'1x8' is no cell"),
     (["table7", "--data-dir", "absent"], "no data folder at 'absent'")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_with_the_reason(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *asked]) == 2
    assert said in capsys.readouterr().err


def test_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(studies())


def cells(text: str, start: str) -> list[str]:
    """The cells of the row of a pipe table that starts so."""
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")]
    (found,) = [row for row in rows if row[0] == start]
    return found


def measured(folder: Path, **changes: object) -> Measured:
    return Measured(dataclasses.replace(Record.load(folder), **changes), folder, "")  # type: ignore[arg-type]


def published(table: str, metric: str, value: str) -> Figure:
    return Figure(table, "mcmoe-paper", "Mixtral-8x7B", "", "", "", metric, value, "")


def test_the_mean_is_over_complete_rows_and_paired_like_its_tasks(tmp_path: Path) -> None:
    chosen = dataclasses.replace(study("table2"), columns={"PIQA_acc": "mini-piqa", "ARC-e_acc": "mini-arc-easy"})
    right = {"a": ([1, 1, 1, 0], [1, 0, 1, 1]), "b": ([0, 1, 0, 0], [1, 0, 0, 1])}
    lines, got = [], {}
    for key, value in {"a": "70", "b": "60"}.items():
        tasks = {n: answers([bool(x) for x in r]) for n, r in zip(chosen.columns.values(), right[key], strict=True)}
        write_run(tmp_path / key, tasks)
        lines.append(Line(key, 2.0, "none", False, {chosen.mean: published("T2", chosen.mean, value)}))
        got[key, 2.0] = measured(tmp_path / key)
    settings = {"model": "elsewhere"}
    text = report(chosen, lines, got, settings)
    error = scipy_stats.sem([1, 1, 1, 0]) / 2**0.5  # of the mean of two tasks with three right of four
    assert cells(text, "a")[-1] == f"75.0 ± {100 * error:.1f}" and cells(text, "b")[-1].startswith("37.5")
    assert cells(text, "mean")[1:4] in (["1", "0", "0"], ["0", "0", "1"])
    held = report(chosen, lines, {k: g._replace(folder=tmp_path / "gone") for k, g in got.items()}, settings)
    assert held == text  # the record holds what the samples say
    part = got["b", 2.0]
    assert part.record is not None
    got["b", 2.0] = part._replace(record=dataclasses.replace(part.record, results=part.record.results[:1]))
    assert cells(report(chosen, lines, got, settings), "b")[-1] == ""


def test_the_points_of_figures_7_and_8_stand_in_their_rows() -> None:
    seven = {line.key: line.published for line in study("figure7").lines()}
    assert (seven["0 %"]["ppl_wikitext2"].value, seven["2 %"]["ppl_wikitext2"].value) == ("6.46", "6.24")
    assert (seven["0 %"]["avg_pruned_params"].value, seven["2 %"]["avg_pruned_params"].value) == ("15.1", "14.8")
    assert [k for k, p in seven.items() if not p] == ["1 %", "5 %", "10 %", "20 %"]
    eight = {line.key: line.published for line in study("figure8").lines()}
    assert eight["2 %"]["ppl_wikitext2"].value == "6.35" and sum(map(bool, eight.values())) == 1


def test_the_share_skipped_is_that_of_the_pairs(tmp_path: Path) -> None:
    chosen = dataclasses.replace(study("table11"), columns={"ppl_wikitext2": "mini-perplexity"})
    write_run(tmp_path / "a", {"mini-perplexity": windows([1.0, 2.0])})
    line = Line("a", 2.05, "none", False, {})
    for uncounted, shown in (((), "{:.1f}"), (("mini-perplexity",), "")):
        told = with_routing(Record.load(tmp_path / "a"), uncounted=uncounted).routing
        assert told is not None
        pairs = (told.prefill, told.decode)
        ran = sum(sum(p.executed) for p in pairs) / sum(sum(p.chosen) for p in pairs)
        text = report(chosen, [line], {("a", 2.05): measured(tmp_path / "a", routing=told)}, {"model": "elsewhere"})
        assert cells(text, "a")[-1] == shown.format(100 * (1 - ran))
        assert ("the pairs of mini-perplexity are known in part" in text) == bool(uncounted)


@pytest.mark.parametrize(("model", "task"), [("", "mini-perplexity"), ("elsewhere", "wikitext2")])
def test_rows_that_differ_in_the_window_ask_one_window_each(model: str, task: str) -> None:
    chosen = study("seqlen")
    grids = list(_grids(chosen, chosen.lines(), {"model": model}))
    asked = {line.key: select_tasks(grid.tasks) for (line,), grid in grids}
    found = {key: (t.name, getattr(t, "window", 0), getattr(t, "style", "")) for key, (t,) in asked.items()}
    assert found == {f"seqlen={n}": (task, n, "disjoint") for n in (512, 1024, 2048, 4096)}
    assert all(grid.methods == ("pmq+odp",) and grid.bits == (2.05,) for _, grid in grids)


def test_scores_of_other_windows_are_put_in_no_order(tmp_path: Path) -> None:
    chosen = study("seqlen")
    lines, got = chosen.lines()[:2], {}
    for line, losses in zip(lines, ([5.0] * 9, [1.0] * 9), strict=True):
        write_run(tmp_path / line.key, {"mini-perplexity": windows(losses)})
        got[line.key, line.bits] = measured(tmp_path / line.key)
    text = report(chosen, lines, got, {})
    first = cells(text, "seqlen=512")
    assert first[3:5] == ["7.26", "14.92"] and first[6].startswith("1.649")  # exp(5 nats / 10 tokens)
    assert "## Does the order hold?" not in text and "no order is told" in text and "**Partial**" not in text


def test_an_order_of_the_text_is_judged_budget_by_budget(tmp_path: Path) -> None:
    orders, bits = (("random", "PMQ"), ("PMQ", "random")), (2.05, 2.18, 2.30)
    chosen = dataclasses.replace(study("figure5"), orders=orders, bits=bits)
    lines = [line for line in chosen.lines() if line.key in ("random", "PMQ")]
    losses = {2.05: 1.0, 2.18: 0.0, 2.30: -1.0}  # nats a window more with random allocation
    got = {}
    for line in lines:
        more = losses[line.bits] * (line.key == "random")
        folder = write_run(
            tmp_path / f"{line.key}{line.bits}", {"mini-perplexity": windows([9 + n / 9 + more for n in range(9)])}
        )
        got[line.key, line.bits] = measured(folder)
    text = report(chosen, lines, got, {})
    assert cells(text, "PMQ before random")[1:] == ["mini-perplexity", "1", "1", "1"]
    got["PMQ", 2.30] = Measured(None, None, "failed: no memory")
    assert cells(report(chosen, lines, got, {}), "random before PMQ")[1:] == ["mini-perplexity", "0", "1", "1"]


def test_every_row_that_a_text_puts_in_an_order_is_there() -> None:
    assert all(set(pair) <= set(s.rows) for s in studies().values() for pair in s.orders)
    assert study("figure5").rows == study("figure6").rows and study("figure5").title != study("figure6").title


def test_where_sets_are_and_the_precision_reach_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[object] = []

    def noted(grid: Grid, **_: object) -> None:
        seen.extend([grid.dtype, current_folder()])
        raise BadInput("seen")

    monkeypatch.setattr("mcbench.reproduce.sweep", noted)
    assert main(["reproduce", "table7", "--dtype", "bfloat16", "--data-dir", str(tmp_path)]) == 2
    assert seen == ["bfloat16", tmp_path]


@pytest.mark.parametrize(("state", "code"), [("failed", 1), ("out of reach", 0)])
def test_a_study_whose_cells_fail_exits_as_a_sweep_does(
    state: State, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def swept(grid: Grid, **_: object) -> tuple[Outcome, ...]:
        return tuple(Outcome(str(cell), state, reason="no bits left") for cell in grid.cells())

    monkeypatch.setattr("mcbench.reproduce.sweep", swept)
    assert main(["reproduce", "table7", "--bits", "2.05", "--out", str(tmp_path)]) == code
    assert f"{state}: no bits left" in capsys.readouterr().out


def test_the_experts_of_a_model_are_measured_one_by_one(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "tiny")
    asked = {"model": str(model), "samples": 2, "length": 64}
    text = reproduce(study("figure3"), asked, out=tmp_path).text
    moe = load_model(str(model))
    needs = tuple(study("figure3").statistics.values())
    stats = calibrate(moe, calibration_data(moe, samples=2, length=64), needs, widths=(2,))
    frequency, weight, error = (part.partition("\n### ")[0] for part in text.split("\n### ")[1:])
    for part, table in (
        (frequency, 100 * stats.token_count / stats.tokens),
        (weight, 100 * stats.routing_weight / stats.tokens),
        (error, stats.table(needs[2])[..., 0]),
    ):
        shown = [[float(cell) for cell in cells(part, f"{layer}")[1:-1]] for layer in range(3)]
        assert shown == [[float(short(value)) for value in row] for row in table]
    assert cells(error, "0")[-1] == short(stats.table(needs[2])[0].max() / stats.table(needs[2])[0].min())
    assert "no number beside it" in text and (tmp_path / "figure3-tiny.svg").is_file() == ("Drawn in" in text)


def timed(batch: int, prompt: int, seconds: dict[ArmName, Sequence[float]], reason: str = "") -> Cell:
    """A cell of one written token per sequence."""
    arms = [
        Arm(name, Phase(batch * prompt, "eager", (1.0,)), Phase(batch, "eager", tuple(times), reason=reason))
        for name, times in seconds.items()
    ]
    return Cell(batch, prompt, 1, tuple(arms))


def test_latencies_stand_beside_those_of_the_same_cell() -> None:
    fast: dict[ArmName, Sequence[float]] = {"eager": [0.4], "best": [0.2], "subject": [0.1], "again": [0.11]}
    slow: dict[ArmName, Sequence[float]] = {"eager": [0.1], "best": [0.1], "subject": [0.4], "again": [0.4]}
    noisy: dict[ArmName, Sequence[float]] = {"eager": [0.4], "best": [0.4], "subject": [0.3], "again": [0.9]}
    none: dict[ArmName, Sequence[float]] = {"eager": [], "best": [], "subject": [], "again": []}
    grid = (timed(8, 2048, fast), timed(1, 512, slow), timed(1, 1024, noisy), timed(16, 4096, none, "out of memory"))
    here = Environment.here(device="cpu", dtype="float32", threads=1)
    found = Profile(
        "pmq+odp", "tiny", "Tiny", 2.54, "f", "uncompressed weights", here, "sdpa", "", "t", 1, 1, Memory(None, None),
        {"experts": 1}, 1, None, None, tuple(str(c.shape) for c in grid), grid,
    )  # fmt: skip
    text = cell_by_cell(study("latency").figures, found)
    row = cells(text, "8x2048+1")
    assert row[1:4] == ["0.009", "0.004", "55.4"]  # as printed
    assert row[4:] == ["50.000", "25.000", "12.500", "75.0", "50.0", "10.0"]
    assert cells(text, "16x4096+1")[4:] == [""] * 6 and "- subject at 16x4096+1: out of memory" in text
    assert "holds in 1, contradicted in 1, cannot tell in 1 of the cells that ran" in text


def test_the_cells_asked_for_are_timed_beside_what_is_printed_of_them(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "tiny")
    asked = {"model": str(model), "samples": 4, "length": 64}
    text = reproduce(study("latency"), asked, out=tmp_path, grid="1x384+2,1x512+1").text
    assert "**Partial**: not every cell" in text
    assert cells(text, "1x384+2")[1:4] == ["", "", ""] and all(map(float, cells(text, "1x384+2")[4:7]))
    row = cells(text, "1x512+1")  # printed, but longer than the window of the tiny model
    assert all(row[1:4]) and not any(row[4:]) and "- subject at 1x512+1: 512 + 1 tokens are longer" in text


@pytest.mark.slow
def test_sizes_and_times_are_measured_of_every_row(tmp_path: Path) -> None:
    settings = {"tasks": "mini-piqa", "limit": 2, "samples": 4, "length": 64}
    text = reproduce(study("table4"), settings, out=tmp_path, bits=(2.05,), grid="1x32+4").text
    heads = cells(text, "row")
    file = next(i for i, head in enumerate(heads) if head.endswith("file MB"))
    read = next(i for i, head in enumerate(heads) if head.endswith("read per token"))
    plain, ours = (cells(text, key) for key in ("FP16", "PMQ"))
    assert "96.80" in plain and "13.41" in ours and "3.23" in cells(text, "PMQ+ODP")
    sizes = sorted(sum(Record.load(p).bits.bytes.values()) / 1e6 for p in tmp_path.rglob(FILE_NAME))
    assert [f"{sizes[0]:.2f}", f"{sizes[-1]:.2f}"] == [ours[file], plain[file]]
    pruned = cells(text, "PMQ+ODP")
    assert float(pruned[read]) < float(ours[read]) < float(plain[read]) and pruned[file] == ours[file]
    assert all(float(row[heads.index(h)]) > 0 for row in (plain, ours, pruned) for h in heads if h.endswith("tokens/s"))
