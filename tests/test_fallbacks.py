"""Whatever goes otherwise than asked is in the record, the report, the tables and the page, gathered into few lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from records import sample_record
from tiny import tiny_folder, tiny_text

from mcbench.errors import BadInput
from mcbench.fallbacks import MOST_KINDS, gathered, gathered_experts
from mcbench.gptq import Settings, gptq
from mcbench.leaderboard import HTML, LATEX, MARKDOWN, render, tabulate_records
from mcbench.pipeline import run
from mcbench.quantization import round_to_nearest
from mcbench.record import Record
from mcbench.report import table

NOTING = '''"""Methods of a test that have something to say."""
import dataclasses
from dataclasses import dataclass
import numpy as np
from mcbench import BitAllocation, Method
from mcbench.quantization import round_to_nearest
from mcbench.routing import Learnt

@dataclass(frozen=True)
class Mine(Method):
    """Says so."""
'''
QUANTISER = """
    def quantize(self, weights, widths, hessian):
        return {w: dataclasses.replace(c, notes=NOTES) for w in widths for c in [round_to_nearest(weights, w)]}
"""
ALLOCATOR = """
    def allocate(self, stats, budget):
        widths = np.full((budget.count.layers, budget.count.experts), 2)
        return BitAllocation(widths, notes=NOTES)
"""
POLICY = """
    def learn(self, model, data):
        return Learnt({}, {}, NOTES)

    def route(self, choices, learnt):
        return choices.keep(choices.chosen)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=256)


def ask(model: Path, folder: Path, body: str, notes: str, method: str = "{}") -> Record:
    mine = folder / "mine.py"
    mine.write_text(NOTING + body.replace("NOTES", notes), encoding="utf-8")
    return run(
        method.format(mine), expert_bits=2.0, widths=(2,), model=str(model), calibration=tiny_text(folder),
        samples=4, length=32, tasks="mini-piqa", limit=1, out=folder / "runs",
    )  # fmt: skip


def test_a_note_on_a_tensor_reaches_the_record_the_report_the_tables_and_the_page(model: Path, tmp_path: Path) -> None:
    notes = '[("row 3 was\\n\\x1b odd",) if at == 1 else () for at in range(len(weights))]'
    record = ask(model, tmp_path, QUANTISER, notes, "uniform+{}")
    matrices = record.model.layers * record.model.experts * 3
    told = f"row 3 was odd: {record.model.layers * 3} of {matrices} expert matrices"
    assert told in record.fallbacks and told in Record.from_json(record.to_json()).fallbacks
    again = ask(model, tmp_path, QUANTISER, notes, "uniform+{}")  # whose codes come from files
    assert again.fallbacks == record.fallbacks
    assert "fallback   row 3 was" in table(record)
    whole = dataclasses.replace(record, results=tuple(dataclasses.replace(r, partial=False) for r in record.results))
    files = render(*tabulate_records([whole]))
    for name in (MARKDOWN, HTML, LATEX):
        assert told in files[name], name
    assert f"{record.method} †" in files[MARKDOWN] and "$\\dagger$" in files[LATEX]
    assert f'title="{told}"' in files[HTML]


@pytest.mark.parametrize(
    ("body", "method"), [(ALLOCATOR, "{}+rtn"), (POLICY, "uniform+rtn+{}")], ids=["allocator", "policy"]
)
def test_the_notes_of_an_allocator_and_of_a_policy_reach_the_record(
    model: Path, tmp_path: Path, body: str, method: str
) -> None:
    for _ in range(2):  # the second time what was learnt comes from a file
        assert "it was otherwise" in ask(model, tmp_path, body, '("it was otherwise",)', method).fallbacks


@pytest.mark.parametrize("notes", ['"loose text"', '("loose text",)', "((1,),) * len(weights)", "((),)"])
def test_notes_that_are_not_texts_for_each_matrix_are_refused(model: Path, tmp_path: Path, notes: str) -> None:
    with pytest.raises(BadInput, match="notes"):
        ask(model, tmp_path, QUANTISER, notes, "uniform+{}")


@pytest.mark.parametrize(
    ("body", "method"), [(ALLOCATOR, "{}+rtn"), (POLICY, "uniform+rtn+{}")], ids=["allocator", "policy"]
)
def test_a_loose_text_is_no_list_of_notes(model: Path, tmp_path: Path, body: str, method: str) -> None:
    with pytest.raises(BadInput, match="must be a tuple of texts"):
        ask(model, tmp_path, body, '"loose"', method)


def test_groups_that_do_not_divide_are_told_with_the_number_of_matrices(model: Path, tmp_path: Path) -> None:
    record = ask(model, tmp_path, "", "", "uniform+rtn(group_size=24)")
    matrices = record.model.layers * record.model.experts  # of gate, of up, and of down, whose rows 24 divides
    told = [line for line in record.fallbacks if line.startswith("group 16 instead of 24, as a row has 32 weights: ")]
    assert told[0].endswith(f": {2 * matrices} of {3 * matrices} expert matrices")
    assert len(told) == 2 and told[1].endswith("attention and shared-expert matrices")


def test_inputs_that_are_always_zero_are_noted() -> None:
    weights, hessian = torch.randn(1, 4, 16), torch.eye(16)[None].clone()
    hessian[0, :3, :3] = 0
    noted = gptq(weights, (3,), hessian, Settings())[3].notes[0]
    assert noted[0] == "3 of 16 inputs were always zero: their weights rounded to nearest"


def each(lines: Iterator[str] | list[str]) -> list[list[str]]:
    return [[line] for line in lines]


def test_remarks_that_differ_in_numbers_alone_are_one_line_with_ranges() -> None:
    remarks = each([f"{n} of 64 rows left, damping {n / 10}" for n in range(1, 11)]) + [[]] * 10
    assert gathered(remarks, "matrices") == ("1 to 10 of 64 rows left, damping 0.1 to 1.0: 10 of 20 matrices",)
    few = each(["group 96", "group 112", "group 96"])
    assert gathered(few, "matrices") == ("group 96: 2 of 3 matrices", "group 112: 1 of 3 matrices")


def test_no_method_can_fill_a_record_with_remarks() -> None:
    words = each([f"{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]}" * 500 for n in range(100)])
    lines = gathered(words, "matrices")
    assert len(lines) == MOST_KINDS and lines[-1] == f"{100 - MOST_KINDS + 1} other remarks: 77 of 100 matrices"
    assert max(map(len, lines)) < 400


def test_what_is_said_of_experts_one_by_one_is_counted() -> None:
    lines = [f"expert {e} of layer {layer} saw no token: estimated" for layer in range(2) for e in (0, 3)]
    assert gathered_experts([*lines, "another thing"], 2, 4) == (
        "saw no token: estimated: 4 of 8 experts",
        "another thing",
    )


def test_a_record_without_fallbacks_has_no_mark() -> None:
    files = render(*tabulate_records([sample_record()]))
    assert all("†" not in text.split("<script", 1)[0] for text in files.values())


def test_codes_without_notes_have_none() -> None:
    assert round_to_nearest(torch.randn(2, 4, 16), 2, 16).notes == ((), ())
