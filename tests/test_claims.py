"""What the pages tell in words is what the tables made from records say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mcbench.comparison import difference
from mcbench.record import FILE_NAME, Record
from mcbench.task import Scores, perplexity

ROOT = Path(__file__).parents[1]
BOARD = ROOT / "leaderboards"
FINDINGS = " ".join((BOARD / "findings.md").read_text(encoding="utf-8").split())
PRUNING = " ".join((BOARD / "pruning.md").read_text(encoding="utf-8").split())
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
OTHERS = ("hessian", "frequency", "routing-weight", "fnorm")
BUDGETS = ("1.570", "1.691", "1.812", "1.934", "2.055", "2.176", "2.297", "2.419", "2.540")


class Cell(NamedTuple):
    """A figure of a table with the error behind it, and whether it is marked as beyond chance."""

    value: float
    error: float
    marked: bool

    @classmethod
    def of(cls, text: str) -> Cell | None:
        found = re.match(r"([-+]?[\d.]+)(?: ± ([\d.]+))?", text)
        return cls(float(found[1]), float(found[2] or 0), "*" in text) if found else None


def table(text: str) -> dict[str, dict[str, str]]:
    """The first table of a text: by row, by column."""
    lines = [line for line in text[text.index("|") :].split("\n\n")[0].splitlines() if line.startswith("|")]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}


def figures(model: str, subject: str, part: str) -> dict[str, dict[str, str]]:
    """A table of the nine budgets."""
    text = (BOARD / "findings" / "budgets.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {model}\n")[1].split("\n## ")[0]
    return table(section.split(f"\n### {subject}")[1].split("\n### ")[0].split(part)[1])


def cells(model: str, subject: str, part: str, others: tuple[str, ...]) -> Iterator[tuple[str, str, Cell]]:
    for other in others:
        for budget, shown in figures(model, subject, part)[other].items():
            if (cell := Cell.of(shown)) is not None:
                yield other, budget, cell


PERPLEXITY, MEAN, REST = "Perplexity, relative", "Mean of the families, points", "The same without"
MODELS = ("reference", "reference-fine")


@pytest.mark.parametrize(
    ("model", "worse"),
    [
        ("reference", {"routing-weight": 9, "frequency": 8, "fnorm": 7, "hessian": 7}),
        ("reference-fine", {"routing-weight": 9, "frequency": 9, "fnorm": 8, "hessian": 7}),
    ],
)
def test_how_often_pmq_is_clearly_worse_in_perplexity(model: str, worse: dict[str, int]) -> None:
    counted = figures(model, "pmq against the others", "Task by task")["mini-perplexity"]
    assert {other: int(counted[other].split("/")[1].split()[0]) for other in worse} == worse
    assert "routing weight at all nine budgets on both models, than frequency at 8 and 9" in FINDINGS
    assert "than F-norm at 7 and 8, than Hessian at 7 and 7" in FINDINGS


def test_where_pmq_wins_and_what_it_loses_to_uniform() -> None:
    wins = {
        (other, budget)
        for other, budget, cell in cells("reference", "pmq against", PERPLEXITY, (*OTHERS, "bsp"))
        if cell.marked and cell.value < 0
    }
    lowest = {(other, budget) for other in ("hessian", "fnorm") for budget in BUDGETS[:2]}
    assert wins == lowest | {("bsp", "1.570"), ("bsp", "1.812")}
    assert not [c for _, _, c in cells("reference-fine", "pmq against", PERPLEXITY, OTHERS) if c.value < 0]
    told = {
        ("reference", PERPLEXITY): "15.0 ± 0.8 % in perplexity",
        ("reference", MEAN): "10.7 ± 0.8 points of the mean",
        ("reference", REST): "without it 5.7 ± 0.8 points remain",
        ("reference-fine", PERPLEXITY): "11.2 ± 0.6 %",
        ("reference-fine", MEAN): "10.4 ± 0.8 points",
        ("reference-fine", REST): "7.0 ± 0.8 remain",
    }
    for (model, part), words in told.items():
        ((_, _, cell),) = cells(model, "pmq against", part, ("uniform",))
        assert f"{abs(cell.value)} ± {cell.error}" in words and words in FINDINGS


def test_pmq_against_random_widths() -> None:
    marked = {
        (model, part): [b for _, b, c in cells(model, "pmq against", part, ("random, mean of 5",)) if c.marked]
        for model in MODELS
        for part in (PERPLEXITY, MEAN, REST)
    }
    assert len(marked["reference", PERPLEXITY]) == 5 and len(marked["reference-fine", PERPLEXITY]) == 9
    assert marked["reference", MEAN] == ["1.691", "1.812"] and marked["reference-fine", MEAN] == []
    assert not marked["reference", REST] and not marked["reference-fine", REST]
    assert "at five budgets on `reference` and at all nine on `reference-fine`" in FINDINGS
    assert "beyond chance at 1.69 and 1.81 on `reference` only, and nowhere without the task" in FINDINGS
    for model in MODELS:
        below = [c.value for _, _, c in cells(model, "pmq against", PERPLEXITY, ("random, mean of 5",))]
        assert max(below) < 0
    fine = [c.value for _, b, c in cells("reference-fine", "pmq against", MEAN, ("random, mean of 5",)) if b < "2.5"]
    assert f"({min(fine):+.1f} to {max(fine):+.1f} points up to 2.42)" in FINDINGS


def test_how_far_output_kl_leads() -> None:
    def leads(part: str, budgets: tuple[str, ...], others: tuple[str, ...]) -> list[Cell]:
        return [c for m in MODELS for _, b, c in cells(m, "output-kl against", part, others) if b in budgets]

    low = [c.value for c in leads(MEAN, BUDGETS[:3], (*OTHERS, "pmq"))]
    rest = [c.value for c in leads(REST, BUDGETS[:3], (*OTHERS, "pmq"))]
    high = leads(MEAN, BUDGETS[6:], OTHERS)
    pmq = [c.value for c in leads(MEAN, BUDGETS[6:8], ("pmq",))]
    assert f"by {min(low)} to {max(low)} points up to 1.81 (by {min(rest)} to {max(rest)} without" in FINDINGS
    assert f"from 2.30 on by at most {max(c.value for c in high)}, mostly within chance" in FINDINGS
    assert sum(c.marked for c in high) < len(high) / 2
    assert f"stays {min(pmq)} to {max(pmq)} behind until 2.42" in FINDINGS
    for model in MODELS:
        clear = ("hessian", "fnorm", "pmq", *(("frequency", "routing-weight") if model == "reference" else ()))
        assert all(c.marked and c.value < 0 for _, _, c in cells(model, "output-kl", PERPLEXITY, clear))
    near = [c for _, b, c in cells("reference-fine", "output-kl", PERPLEXITY, OTHERS[1:3]) if b >= "2.176"]
    assert all(abs(c.value) <= 1 for c in near)
    assert [c.marked for m in MODELS for _, _, c in cells(m, "output-kl", MEAN, ("uniform",))] == [False, False]
    assert "neither difference is beyond chance (+0.8 and -1.1 points)" in FINDINGS


NAMES = {
    "random, mean of 5": "random, mean of 5",
    "Hessian": "hessian",
    "F-norm": "fnorm",
    "frequency": "frequency",
    "routing weight": "routing-weight",
    "PMQ as released": "pmq",
    "output-KL": "output-kl",
}


def rows(path: Path, first: str) -> dict[str, list[str]]:
    """The rows of the table whose head begins so, as they stand."""
    text = path.read_text(encoding="utf-8").split(f"\n| {first} ", 1)[1].split("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {line[0]: line[1:] for line in lines}


def test_the_perplexities_of_the_page_are_those_of_the_figures() -> None:
    page = rows(BOARD / "findings.md", "allocation | reference 1.57 | 1.81")
    for shown, name in NAMES.items():
        one, fine = (perplexities(model)[name] for model in MODELS)
        wanted = [one[b] for b in ("1.570", "1.812", "2.055", "2.297", "2.540")]
        wanted += [fine[b] for b in ("1.570", "1.812", "2.055", "2.176", "2.297", "2.540")]
        assert page[shown] == [value.split(" ")[0] for value in wanted], shown


def test_the_study_of_three_budgets_is_that_of_its_figures() -> None:
    page = rows(BOARD / "findings.md", "allocation | reference 1.57 | 2.05")
    names = {
        **{shown: name for shown, name in NAMES.items() if shown in page},
        "random": "random",
        "PMQ, gamma 2 as printed": "pmq(gamma=2)",
        "PMQ, error on the model's output as eq. 3 words it": "pmq(error=kl, quantizer=final)",
        "output-KL, budget per layer": "output-kl(scope=layer)",
        "uniform 2 bits": "uniform",
    }
    assert set(names) == set(page)
    both = [rows(BOARD / "findings" / f"{model}.md", "allocation ") for model in MODELS]
    for shown, name in names.items():
        assert page[shown] == [*both[0][name], *both[1][name]], shown


def test_what_skipping_costs_is_that_of_its_figures() -> None:
    text = (BOARD / "pruning" / "grid.md").read_text(encoding="utf-8")
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    known = {f"{row[7]} ({row[2]})": row[1] for row in lines[1:]}
    page = (BOARD / "pruning.md").read_text(encoding="utf-8").split("\n| asked | policy")[1].split("\n\n")[0]
    told = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines()[2:]]
    assert len(told) > 15
    for _, policy, *figures in told:
        for figure in figures:
            assert figure in known, (policy, figure)
            kind, _, statistic = policy.split(" (")[0].partition(" ")
            assert known[figure].startswith("token-statistic" if statistic else kind), (policy, figure)
            assert not statistic or f"statistic={statistic}" in known[figure] or statistic == "kurtosis"  # the default


def perplexities(model: str) -> dict[str, dict[str, str]]:
    text = (BOARD / "findings" / "budgets.md").read_text(encoding="utf-8")
    return table(text.split(f"\n## {model}\n")[1].split("\n### Perplexity\n")[1])


def test_which_criteria_the_models_do_not_meet_is_told() -> None:
    verdicts = (BOARD / "notes.md").read_text(encoding="utf-8")
    failed = {
        model: [
            line for line in verdicts.split(f"### {model}\n")[1].split("###")[0].splitlines() if "**Not met**" in line
        ]
        for model in MODELS
    }
    assert [len(failed[model]) for model in MODELS] == [1, 3]
    (one,) = failed["reference"]
    room, two, fine = failed["reference-fine"]
    left = [re.search(r"([\d.]+) % of what 16 bits has above chance left", line) for line in (one, fine)]
    assert all(left)
    shares = " %, `reference-fine` ".join(found[1] for found in left if found)
    assert f"(`reference` {shares} % of what 16 bits has above chance)" in README
    assert "9 of 11 families do, 10 are wanted" in room and "two families of eleven have no room in 16 bits" in README
    assert "on 5 of 11 families" in two and "and 6 families worse" in two
    assert "clearly worse on five families where six were asked for" in README


def test_otp_beside_random_skipping_and_the_threshold() -> None:
    text = (BOARD / "pruning" / "grid.md").read_text(encoding="utf-8")
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    points = {(row[0], row[1]): Cell.of(row[-1]) for row in rows}
    losses = {(row[0], row[1]): Cell.of(row[-3]) for row in rows}
    otp = ("otp(skip=0.15, seed=0)", "otp(skip=0.25, seed=0)")
    chance = ("random-skip(seed=0)", "random-skip(skip=0.25, seed=0)")
    plain = ("naee(skip=0.15)", "naee(skip=0.25)")

    def of(table: dict[tuple[str, str], Cell | None], bits: str, names: tuple[str, ...]) -> list[Cell]:
        found = [table[bits, name] for name in names]
        return [cell for cell in found if cell is not None]

    for bits in ("1.57", "2.05", "2.54"):
        for mine, drawn in zip(of(losses, bits, otp), of(losses, bits, chance), strict=True):
            assert drawn.value - mine.value > 3 * (mine.error**2 + drawn.error**2) ** 0.5
        for at, (mine, rule) in enumerate(zip(of(losses, bits, otp), of(losses, bits, plain), strict=True)):
            assert mine.value > rule.value or (bits, at) == ("1.57", 1)
        for mine, rule in zip(of(points, bits, otp), of(points, bits, plain), strict=True):
            assert mine.value < rule.value
    for bits in ("2.54", "1.57"):
        told = " against ".join(" and ".join(f"{c.value:+.1f}" for c in of(points, bits, n)) for n in (otp, chance))
        assert told in PRUNING.replace(" points against", " against")


def test_committed_errors_of_perplexities_are_those_that_todays_functions_give() -> None:
    paths = sorted((BOARD / "records").rglob(FILE_NAME))
    records = {path: Record.load(path) for path in [*paths[::25], *(p for p in paths if p.parent.name == "none")]}
    plain = {record.fingerprint: record for record in records.values()}
    seen = 0
    for record in records.values():
        (mine,) = (result for result in record.results if not result.higher_is_better)
        rows = mine.rows()
        found = perplexity([r["loss"] for r in rows], [r["tokens"] for r in rows], [r["id"] for r in rows])
        assert found.standard_error == pytest.approx(mine.standard_error)
        if record.baseline in plain:
            (theirs,) = (r for r in plain[record.baseline].results if r.task == mine.task)
            scores = [
                Scores(mine.task, mine.protocol, mine.metric, False, one.value, one.n, samples=one.rows())
                for one in (mine, theirs)
            ]
            paired = difference(*scores)
            assert paired is not None and paired.standard_error == pytest.approx(mine.difference_error)
            seen += 1
    assert seen > 5
