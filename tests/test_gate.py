"""The gate errs no more often than it says, and says when it cannot tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from runs import answers, windows, write_run
from scipy import stats

from mcbench.cli import main
from mcbench.gate import judge
from mcbench.record import FILE_NAME, Record
from mcbench.uncertainty import Evidence
from mcbench.versus import Comparison, Contrast, Run, Versus, load_run


def contrast(lost: int, gained: int, n: int, task: str = "quiz") -> Contrast:
    deltas = np.repeat([-1.0, 1.0, 0.0], [lost, gained, n - lost - gained])
    found = Evidence(deltas, np.ones(n), (lost, gained))
    value = 0.5 + found.difference
    return Contrast(
        task, (), "acc %", True, n, n, 0.5, value, found.difference, None, lost, gained, 1, 1, None, None, False, found
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(write_run(tmp_path_factory.mktemp("run"), {"quiz": answers([True, False])}))


def comparison(run: Run, contrasts: Sequence[Contrast]) -> Comparison:
    return Comparison(run, (Versus(run, tuple(contrasts), None, {}),), 0.95, len(contrasts))


def chances(run: Run, n: int, lost: float, gained: float, margin: float) -> dict[str, float]:
    """The exact probability of each outcome of the gate on one task."""
    law, found = stats.multinomial(n, [lost, gained, 1 - lost - gained]), dict.fromkeys(("passed", "failed"), 0.0)
    for b in range(n + 1):
        for c in range(n + 1 - b):
            if (p := float(law.pmf([b, c, n - b - c]))) > 1e-6:
                outcome = judge(comparison(run, [contrast(b, c, n)]), margin=margin).outcome
                found[outcome] = found.get(outcome, 0.0) + p
    return found


def test_at_the_margin_neither_answer_is_given_more_often_than_it_says(run: Run) -> None:
    found = chances(run, 150, lost=0.07, gained=0.02, margin=5.0)
    assert 0.03 < found["passed"] <= 0.05  # every outcome is counted
    assert 0.03 < found["failed"] <= 0.05


@pytest.mark.parametrize("margin", [0.01, 0.03, 0.05])
def test_runs_that_only_lose_pass_and_fail_no_more_often_than_it_says(run: Run, margin: float) -> None:
    found = chances(run, 100, lost=margin, gained=0.0, margin=100 * margin)
    assert max(found["passed"], found["failed"]) <= 0.05


@pytest.mark.parametrize("rho", [0.0, 0.6])
@pytest.mark.parametrize("shocks", ["normal", "lopsided"])
def test_one_long_text_at_its_margin_passes_and_fails_no_more_often_than_it_says(rho: float, shocks: str) -> None:
    runs, windows, generator = 1500, 40, np.random.default_rng(3)
    size = (runs, windows + 60)
    rows = generator.normal(size=size) if shocks == "normal" else generator.exponential(size=size) - 1
    for at in range(1, windows + 60):
        rows[:, at] += rho * rows[:, at - 1]
    found = [Evidence(row, np.ones(windows), bounded=False, row=True).bounds(0.05) for row in rows[:, 60:]]
    beyond = 2 * (0.05 * 0.95 / runs) ** 0.5
    assert np.mean([one is not None and one.high < 0 for one in found]) < 0.05 + beyond
    assert np.mean([one is not None and one.low > 0 for one in found]) < 0.05 + beyond


def test_a_model_that_loses_nothing_is_hardly_ever_failed(run: Run) -> None:
    found = chances(run, 100, lost=0.04, gained=0.04, margin=3.0)
    assert found["failed"] < 0.01
    assert found["cannot tell"] > found["passed"]  # a hundred samples are few


@pytest.mark.parametrize("each", [False, True])
def test_many_tasks_at_their_margin_raise_no_more_false_alarms_than_one(run: Run, each: bool) -> None:
    generator, runs = np.random.default_rng(int(each)), 400
    seen = dict.fromkeys(("passed", "failed", "cannot tell"), 0)
    for _ in range(runs):
        flips = generator.multinomial(300, [0.07, 0.02, 0.91], size=6)
        tasks = [contrast(int(b), int(c), 300, f"quiz {at}") for at, (b, c, _) in enumerate(flips)]
        seen[judge(comparison(run, tasks), margin=5.0, each=each).outcome] += 1
    beyond = 3 * (0.05 * 0.95 / runs) ** 0.5
    assert seen["failed"] / runs < 0.05 + beyond
    assert seen["passed"] / runs < 0.05 + beyond


def test_a_clustered_task_raises_no_more_false_alarms_than_it_says(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcbench.uncertainty.REPEATS", 1000)
    generator, runs, failed = np.random.default_rng(5), 400, 0
    for _ in range(runs):
        lost = generator.binomial(10, generator.choice([0.0, 0.5], size=25, p=[0.9, 0.1]))  # whole stories at a time
        found = Evidence(-lost.astype(float), np.full(25, 10.0))
        task = Contrast(
            "stories",
            (),
            "acc %",
            True,
            250,
            25,
            0.5,
            0.5,
            found.difference,
            None,
            0,
            0,
            1,
            1,
            None,
            None,
            False,
            found,
        )
        failed += judge(comparison(run, [task]), margin=5.0).outcome == "failed"
    assert failed / runs < 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


@pytest.mark.parametrize("margin", [0.032, 0.05])
def test_few_clusters_that_lost_prove_little(margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a true loss of the margin in whole passages, the interval lies above it hardly more often than 5 %."""
    monkeypatch.setattr("mcbench.uncertainty.REPEATS", 1000)
    generator, runs, passed = np.random.default_rng(6), 400, 0
    for _ in range(runs):
        lost = np.where(generator.random(95) < margin, 3.0, 0.0)
        interval = Evidence(-lost, np.full(95, 3.0)).interval(0.90)
        assert interval is not None
        passed += interval.low > -margin
    assert passed / runs < 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_every_claim_must_be_proven_and_one_refuted_is_enough(run: Run) -> None:
    good, bad, unsure = contrast(0, 0, 1000, "good"), contrast(300, 0, 1000, "bad"), contrast(1, 0, 20, "unsure")
    assert judge(comparison(run, [good]), each=True).outcome == "passed"
    assert judge(comparison(run, [good, unsure]), each=True).outcome == "cannot tell"
    assert judge(comparison(run, [good, unsure, bad]), each=True).outcome == "failed"


def test_what_would_settle_it_is_told_and_does(run: Run) -> None:
    verdict = judge(comparison(run, [contrast(3, 2, 100)]), margin=4.0)
    assert verdict.outcome == "cannot tell"
    (claim,) = verdict.claims
    assert claim.enough is not None and f"{claim.enough:.1f} times the samples" in verdict.why
    times = int(np.ceil(1.1 * claim.enough))
    assert judge(comparison(run, [contrast(3 * times, 2 * times, 100 * times)]), margin=4.0).outcome == "passed"


@pytest.mark.parametrize(
    ("lost", "code", "word"), [(0, 0, "Passed"), (40, 1, "Failed"), (3, 3, "Cannot tell")], ids=["0", "1", "3"]
)
def test_the_exit_code_is_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: int, code: int, word: str
) -> None:
    first = write_run(tmp_path / "a", {"quiz": answers([True] * 200)})
    second = write_run(tmp_path / "b", {"quiz": answers([at >= lost for at in range(200)])})
    assert main(["compare", str(first), str(second), "--gate", "--margin", "2"]) == code
    assert capsys.readouterr().out.rstrip().split("\n\n")[-1].startswith(word)


def test_a_perplexity_is_held_to_a_margin_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = np.random.default_rng(0).normal(20, 2, 50)
    first = write_run(tmp_path / "a", {"quiz": answers([True] * 400), "text": windows(base.tolist())})
    second = write_run(tmp_path / "b", {"quiz": answers([True] * 400), "text": windows((base + 0.2).tolist())})
    gate = ["compare", str(first), str(second), "--gate", "--margin", "2", "--perplexity-margin"]
    assert main([*gate, "3"]) == 0  # 0.02 nats a token are 2.02 %
    assert main([*gate, "2"]) == 1
    assert "in text: 2.02 % lost" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("skipped", ["programs are run only with --allow-code-execution", ""])
def test_a_task_that_only_the_first_run_answered_keeps_the_gate_shut(
    tmp_path: Path, skipped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    right = answers([True] * 70 + [False] * 30)
    first = write_run(tmp_path / "a", {"mini-piqa": right, "mini-humaneval": right})
    second = write_run(tmp_path / "b", {"mini-piqa": right, **({"mini-humaneval": right} if skipped else {})})
    if skipped:
        record = Record.load(second)
        kept, left = record.results
        left = dataclasses.replace(left, value=None, skipped=skipped, outcomes=())
        dataclasses.replace(record, results=(kept, left)).save(second / FILE_NAME)
    gate = ["compare", str(first), str(second), "--gate", "--margin", "10"]
    reason = f"mini-humaneval in {second}: {skipped or 'not in its record'}"
    for tasks in ([], ["--tasks", "mini"]):
        assert main([*gate, *tasks]) == 3
        told = "".join(capsys.readouterr().out.split("Cannot tell")[1].split())
        assert "".join(reason.split()) in told and "--tasks" in told
    assert main([*gate, "--tasks", "mini-piqa"]) == 0
    assert "Passed" in capsys.readouterr().out
    assert main(gate[:3]) == 0
    assert "".join(f"unanswered {reason}".split()) in "".join(capsys.readouterr().out.split())


def test_a_gain_is_worded_as_a_gain_in_points_of_shares_and_per_cent_of_perplexity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = np.random.default_rng(0).normal(20, 2, 50)
    first = write_run(
        tmp_path / "a", {"quiz": answers([at >= 40 for at in range(400)]), "text": windows(base.tolist())}
    )
    better = {"quiz": answers([True] * 400), "text": windows((base - 0.2).tolist())}
    second = write_run(tmp_path / "b", better)
    assert main(["compare", str(first), str(second), "--gate", "--margin", "1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "over quiz: 10.00 points gained, at least 7." in told and "points gained, margin 1 point." in told
    assert "in text: 1.98 % gained, at least 1.98 % gained, margin 1 %." in told
