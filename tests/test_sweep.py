"""A grid gives the records that its cells give alone, does shared work once, and goes on after whatever stops it."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sealing import cells
from tiny import tiny_folder, tiny_text

from mcbench.activations import Activations
from mcbench.cli import main
from mcbench.compression import CompressedModel
from mcbench.datasets import current_folder
from mcbench.errors import BadInput, UnknownName
from mcbench.pipeline import Exam, run
from mcbench.record import Record
from mcbench.sandbox import Isolation
from mcbench.store import ExpertStore
from mcbench.sweep import JOURNAL, Grid, Journal, Outcome, command, make_grid, numbers, plan, read_grid, sweep
from mcbench.task import ALLOW, SampleFile

METHODS = ("none", "pmq", "output-kl", "fnorm", "uniform+rtn")
TASKS = "mini-perplexity,mini-piqa"

BREAKS = '''
from dataclasses import dataclass
from mcbench.method import Method

@dataclass(frozen=True)
class Breaks(Method):
    """Fails at the one budget."""

    def allocate(self, stats, budget):
        if budget.asked < 2:
            raise RuntimeError("no bits left")
        from mcbench.allocation import cheapest
        import numpy as np
        return cheapest(np.ones((*stats.token_count.shape, len(budget.widths))), budget)
'''


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    text = tiny_text(folder)
    model = tiny_folder(folder / "tiny", max_position_embeddings=1024)
    return {"model": str(model), "calibration": str(text), "samples": 8, "length": 64, "tasks": TASKS, "limit": 4}


def grid(settings: dict[str, Any], **changes: Any) -> Grid:
    return Grid(**{"methods": METHODS, "expert_bits": (1.5, 2.0), "seeds": (0, 1), **settings, **changes})


def comparable(record: Record) -> Record:
    """A record without what is about the moment at which it was made."""
    return dataclasses.replace(
        record,
        asked="",
        stages={},
        created="",
        command=(),
        results=tuple(dataclasses.replace(result, seconds=0.0) for result in record.results),
    )


def records(outcomes: tuple[Outcome, ...]) -> dict[str, Record]:
    return {outcome.cell: comparable(Record.load(outcome.record)) for outcome in outcomes if outcome.state == "done"}


@pytest.fixture(scope="module")
def swept(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Outcome, ...], Path]:
    out = tmp_path_factory.mktemp("swept")
    return sweep(grid(settings), out=out), out


def test_every_cell_is_done_or_out_of_reach(swept: tuple[tuple[Outcome, ...], Path]) -> None:
    outcomes, _ = swept
    assert len(outcomes) == 1 + 2 * 4 * 2
    assert {o.cell for o in outcomes if o.state == "out of reach"} == {
        f"uniform+rtn at 1.5 expert bits, seed {seed}" for seed in (0, 1)
    }
    assert sum(o.state == "done" for o in outcomes) == 1 + 2 * 7
    assert len({o.record for o in outcomes if o.state == "done"}) == 15


def test_a_record_that_other_tasks_replaced_is_made_again(settings: dict[str, Any], tmp_path: Path) -> None:
    first, other = (grid(settings, methods=("none",), tasks=tasks) for tasks in TASKS.split(","))
    for asked, name in ((first, "mini-perplexity"), (other, "mini-piqa"), (first, "mini-perplexity")):
        (outcome, *_) = sweep(asked, out=tmp_path)
        assert [result.task for result in Record.load(outcome.record).results] == [name]


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_gives_what_the_run_alone_gives(
    swept: tuple[tuple[Outcome, ...], Path], settings: dict[str, Any], tmp_path: Path, method: str
) -> None:
    bits = None if method == "none" else 2.0
    alone = run(method, expert_bits=bits, out=tmp_path, seed=0, **settings)
    name = alone.method + ("" if bits is None else " at 2 expert bits") + ", seed 0"
    assert records(swept[0])[name] == comparable(alone)


def test_the_command_in_a_record_makes_that_record_alone(
    swept: tuple[tuple[Outcome, ...], Path], tmp_path: Path
) -> None:
    for outcome in [o for o in swept[0] if "none" in o.cell or "fnorm+gptq at 1.5 expert bits, seed 1" in o.cell]:
        made = Record.load(outcome.record)
        assert main([*made.command[1:], "--out", str(tmp_path / outcome.cell)]) == 0
        (again,) = (tmp_path / outcome.cell).rglob("record.json")
        assert comparable(Record.load(again)) == comparable(made)


def test_a_policy_on_the_uncompressed_model_is_calibrated(settings: dict[str, Any], tmp_path: Path) -> None:
    (outcome,) = sweep(grid(settings, methods=("none+topk(k=1)",), seeds=(0,), tasks="mini-piqa"), out=tmp_path)
    assert (outcome.state, outcome.reason) == ("done", "")
    assert Record.load(outcome.record).routing is not None


def test_only_the_uncompressed_model_knows_no_seed() -> None:
    cells = [str(cell) for cell in Grid(("none", "none+random-skip"), seeds=(0, 1, 2)).cells()]
    assert cells == [
        "none, seed 0",
        "none+random-skip(seed=0), seed 0",
        "none+random-skip(seed=1), seed 1",
        "none+random-skip(seed=2), seed 2",
    ]


def test_a_task_skipped_for_lack_of_isolation_is_run_once_that_is_allowed(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weakest = Isolation("limits", False, "not prevented: network", "limits")
    monkeypatch.setattr("mcbench.sandbox.isolation", lambda: weakest)
    asked = grid(settings, methods=("none",), seeds=(0,), tasks="mini-piqa,mini-humaneval", limit=2)
    (first,) = sweep(asked, out=tmp_path)
    assert ALLOW in Record.load(first.record).results[1].skipped and ALLOW not in Record.load(first.record).command
    states = [plan(asked, out=tmp_path, allow_code_execution=code).outcomes[0].state for code in (False, True)]
    assert states == ["done", "to do"]
    (second,) = sweep(asked, out=tmp_path, allow_code_execution=True)
    healed = Record.load(second.record)
    assert healed.results[1].skipped == "" and healed.results[1].value is not None and healed.command[-1] == ALLOW
    monkeypatch.setattr("mcbench.sweep._run", lambda *_: Outcome("", "failed", reason="was run again"))
    assert sweep(asked, out=tmp_path, allow_code_execution=True) == sweep(asked, out=tmp_path) == (second,)


def test_shared_work_is_done_once(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}

    def counting(owner: Any, name: str, label: Any = None) -> None:
        original = getattr(owner, name)

        def counted(self: Any, *arguments: Any) -> Any:
            key = f"{name} {label(self, *arguments) if label else ''}".strip()
            counts[key] = counts.get(key, 0) + 1
            return original(self, *arguments)

        monkeypatch.setattr(owner, name, counted)

    counting(ExpertStore, "_quantize_layer", lambda store, layer: store.quantizer_name.split()[0])
    counting(Exam, "take", lambda exam, moe, identity, title: title.split()[0])
    counting(Activations, "_run", lambda activations, layers: "of layers" if layers else "of linears")
    done = sweep(grid(settings, seeds=(0,)), out=tmp_path)
    assert sum(o.state == "done" for o in done) == 8
    assert counts["_quantize_layer gptq"] == counts["_quantize_layer rtn"] == 3  # the model's layers
    assert counts["take uncompressed"] == 1 and counts["take pmq+gptq"] == 2
    assert counts["_run of layers"] == 1


@pytest.mark.parametrize(("where", "after"), [("append", 1), ("append", 5), ("append", 6), ("prepare", 1), ("note", 2)])
def test_a_sweep_killed_anywhere_goes_on_to_the_same_records(
    swept: tuple[tuple[Outcome, ...], Path],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    after: int,
) -> None:
    owner: Any = {"append": SampleFile, "prepare": ExpertStore, "note": Journal}[where]
    original, calls = getattr(owner, where), 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        return original(*arguments)

    asked = grid(settings, methods=("none", "pmq", "uniform+rtn"), seeds=(0,))
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(asked, out=tmp_path)
    again = records(sweep(asked, out=tmp_path))
    assert len(again) == 4
    assert again == {cell: record for cell, record in records(swept[0]).items() if cell in again}


@pytest.mark.slow
def test_a_sweep_whose_process_is_killed_goes_on(
    swept: tuple[tuple[Outcome, ...], Path], settings: dict[str, Any], tmp_path: Path
) -> None:
    arguments = ["--methods", "none,pmq,fnorm", "--expert-bits", "1.5,2", "--out", str(tmp_path), "--quiet"]
    arguments += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    kills = 0
    for finished in (1, 3):  # cells
        with subprocess.Popen(
            [sys.executable, "-m", "mcbench", "sweep", *arguments], stdout=subprocess.DEVNULL
        ) as going:
            while going.poll() is None:
                journal = tmp_path / JOURNAL
                if journal.is_file() and len(cells(journal)) >= finished:
                    going.kill()
                time.sleep(0.01)
        kills += going.returncode == -signal.SIGKILL
    assert kills
    again = records(sweep(grid(settings, methods=("none", "pmq", "fnorm"), seeds=(0,)), out=tmp_path))
    assert again == {cell: record for cell, record in records(swept[0]).items() if cell in again} and len(again) == 5


def test_what_is_done_is_not_done_again(
    swept: tuple[tuple[Outcome, ...], Path], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, out = swept
    monkeypatch.setattr("mcbench.sweep._run", lambda *arguments: Outcome("", "failed", reason="was run again"))
    again = sweep(grid(settings, methods=("none", "pmq", "fnorm"), seeds=(0,)), out=out)
    assert all(o in outcomes for o in again)


def test_a_record_that_was_edited_is_made_again(settings: dict[str, Any], tmp_path: Path) -> None:
    asked = grid(settings, methods=("pmq",), expert_bits=(2.0,), seeds=(0,))
    (first,) = sweep(asked, out=tmp_path)
    whole = Record.load(first.record)
    Path(first.record).write_text(Path(first.record).read_text().replace('"seed": 0', '"seed": 7', 1))
    (second,) = sweep(asked, out=tmp_path)
    assert comparable(Record.load(second.record)) == comparable(whole)


def test_a_cell_that_fails_is_noted_and_the_rest_go_on(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "breaks.py").write_text(BREAKS)
    arguments = ["sweep", "--methods", f"{tmp_path / 'breaks.py'},pmq", "--expert-bits", "1.5,2", "--quiet"]
    arguments += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert main([*arguments, "--out", str(tmp_path / "runs")]) == 1
    shown = capsys.readouterr().out
    assert "RuntimeError: no bits left" in shown and "3 done" in shown and "1 failed" in shown
    kept = cells(tmp_path / "runs" / JOURNAL)
    assert [c["reason"] for c in kept if c["state"] == "failed"] == ["RuntimeError: no bits left"]
    (tmp_path / "breaks.py").write_text(BREAKS.replace("asked < 2", "asked < 1"))
    assert main([*arguments, "--out", str(tmp_path / "runs")]) == 0  # what failed is tried again
    assert "4 done" in capsys.readouterr().out


def test_a_cell_that_fails_half_compressed_leaves_the_model_as_it_was(
    swept: tuple[tuple[Outcome, ...], Path], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = CompressedModel.digest, 0

    def broken(self: CompressedModel) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MemoryError("too large")
        return original(self)

    monkeypatch.setattr(CompressedModel, "digest", broken)
    first, second = sweep(grid(settings, methods=("pmq",), seeds=(0,)), out=tmp_path)
    assert (first.state, first.reason) == ("failed", "MemoryError: too large")
    assert comparable(Record.load(second.record)) == records(swept[0])[second.cell]


def test_a_plan_says_what_is_done_and_writes_nothing(
    swept: tuple[tuple[Outcome, ...], Path], settings: dict[str, Any], tmp_path: Path
) -> None:
    planned = plan(grid(settings), out=tmp_path / "new")
    assert [o.state for o in planned.outcomes].count("to do") == 15 and not (tmp_path / "new").exists()
    assert planned.evaluation_seconds is not None and planned.evaluation_seconds > 0
    assert planned.store_bytes == 2 * 2 * (
        (1 + 2 + 3) * 3 * 6 * 3 * 32 * 48 // 8 + 3 * (2 * 32 * 32 + 2 * 32 * 16) // 2
    )
    known = plan(grid(settings), out=swept[1])
    assert [o.state for o in known.outcomes].count("to do") == 0 and known.evaluation_seconds is None


def test_a_file_asks_for_what_the_flags_ask_for(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        'methods = ["pmq(beta=1, gamma=2)", "uniform"]\nbits = "1.57:2.54:3"\n'
        'seeds = [0, 1]\ntasks = "quick"\nlimit = 5\n'
    )
    flags = {"methods": "pmq(beta=1, gamma=2),uniform", "bits": "1.57,2.055,2.54", "seeds": "0,1", "tasks": "quick"}
    assert read_grid(path) == make_grid({**flags, "limit": 5})
    assert read_grid(path, limit=7).limit == 7
    path.write_text('methods = "pmq"\nexpert-bits = [1.5, 2]\n')
    assert read_grid(path) == Grid(("pmq",), expert_bits=(1.5, 2.0))


def test_widths_are_taken_in_any_order() -> None:
    assert make_grid({"methods": "pmq", "bits": "2", "widths": "3,1,2"}) == Grid(("pmq",), bits=(2.0,))


@pytest.mark.parametrize("in_file", [False, True])
def test_sets_are_looked_for_in_the_folder_named(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool
) -> None:
    seen: list[Path | None] = []

    def noted(bench: Any, asked: Grid, cell: Any) -> Outcome:
        seen.append(current_folder())
        command_line = command(asked, cell)
        assert command_line[-2:] == ("--data-dir", str(tmp_path / "sets"))
        return Outcome(str(cell), "failed", reason="seen")

    monkeypatch.setattr("mcbench.sweep._run", noted)
    (tmp_path / "sets").mkdir()
    (tmp_path / "grid.toml").write_text(f"data_dir = '{tmp_path / 'sets'}'\n")
    named = [str(tmp_path / "grid.toml")] if in_file else ["--data-dir", str(tmp_path / "sets")]
    asked = ["--methods", "none", "--model", settings["model"], "--tasks", "mini-piqa", "--out", str(tmp_path / "runs")]
    assert main(["sweep", *named, *asked, "--quiet"]) == 1
    assert seen == [tmp_path / "sets"]


def test_the_range_of_the_papers_has_their_nine_budgets() -> None:
    papers = (1.57, 1.69, 1.81, 1.94, 2.05, 2.18, 2.30, 2.42, 2.54)
    assert numbers("1.57:2.54") == pytest.approx(papers, abs=0.01)


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ('metods = "pmq"', UnknownName, "no setting 'metods'; did you mean 'methods'"),
        ('methods = "pmq"\nbits = "2.54:1.57"', BadInput, "is no range of widths"),
        ('methods = "pmq"\nbits = "x"', BadInput, "must be numbers by commas"),
        ('methods = "pmq"\nbits = [true]', BadInput, "must be numbers by commas"),
        ('methods = "pmq"\nbits = [nan]', BadInput, "is no range of widths"),
        ('methods = "pmq"\nseeds = [0.5]', BadInput, "must be whole numbers"),
        ('methods = "pmq"\nseeds = [-1]', BadInput, "seed must lie between 0 and"),
        ('methods = "pmq"\nlimit = "x"', BadInput, "limit must be int"),
        ('methods = "pmq"\nlimit = true', BadInput, "limit must be int"),
        ('methods = "pmq"\nbits = [2]\nexpert_bits = [2]', BadInput, "not both"),
        ('methods = ""', BadInput, "must be method strings"),
        ("methods = []", BadInput, "must be method strings"),
        ("methods = [1]", BadInput, "must be method strings"),
        ('methods = "pmq,,fnorm"', BadInput, "has an empty name"),
        ("bits = [2]", BadInput, "names no methods"),
        ("methods = ", BadInput, "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, text: str, kind: type[Exception], reason: str) -> None:
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(kind, match=reason):
        read_grid(tmp_path / "grid.toml")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "names no methods"),
        (["--methods", "pmp", "--bits", "2"], "did you mean 'pmq'"),
        (["--methods", "pmq"], "needs budgets"),
        (["--methods", "pmq", "--bits", "2", "--tasks", "mini-pika"], "did you mean 'mini-piqa'"),
        (["--methods", "pmq", "--bits", "2", "--tasks", ""], "tasks is empty"),
        (["--methods", "pmq", "--bits", "2", "--data-dir", "absent"], "no data folder at 'absent'"),
        (["--methods", "pmq", "--bits", "2", "--limit", "0"], "limit must lie between 1"),
        (["--methods", "pmq", "--bits", "2", "--calibration", "absent.txt"], "absent.txt"),
        (["--methods", "pmq", "--bits", "2", "--out", ""], "output folder is empty"),
        (["absent.toml"], "cannot be read"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_computed(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments, "--quiet"]) == 2
    told = capsys.readouterr()
    assert reason in told.err and told.err.count("\n") == 1 and not told.out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expert_bits": (1.55, 9.0), "methods": ("uniform",)}, "no cell of the grid can be run"),
        ({"widths": (0, 5)}, "width"),
        ({"widths": (1, 99)}, "width"),
    ],
)
def test_a_grid_without_a_cell_that_can_be_run_is_refused(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    for function in (sweep, plan):
        with pytest.raises(BadInput, match=reason):
            function(grid(settings, **{"methods": ("pmq",), **changes}), out=tmp_path)
    assert not (tmp_path / JOURNAL).exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cut short"),
        ("[]", "cut short"),
        ('{"schema": 9, "cells": {}}', "delete it, the samples of the runs are kept"),
    ],
)
def test_a_damaged_journal_is_named(settings: dict[str, Any], tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / JOURNAL).write_text(text)
    with pytest.raises(BadInput, match=reason):
        sweep(grid(settings), out=tmp_path)


def test_the_record_of_another_cell_is_not_taken_for_that_of_a_cell(
    swept: tuple[tuple[Outcome, ...], Path],
    settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes, out = swept
    shutil.copytree(out, tmp_path / "runs")
    first, second = (o for o in outcomes if o.cell.startswith("pmq+gptq") and o.cell.endswith("seed 0"))
    mine, other = (tmp_path / "runs" / Path(o.record).relative_to(out) for o in (first, second))
    shutil.copy(other, mine)
    again = sweep(grid(settings, methods=("pmq",), seeds=(0,)), out=tmp_path / "runs")
    assert f"the record {str(mine)!r} is not the one that {first.cell} gave" in capsys.readouterr().err
    assert records(again).items() <= records(outcomes).items()
