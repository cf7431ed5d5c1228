"""The mean of a suite says which metric each task gave, and is blank where a task is missing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from records import sample_record, sample_result

from mcbench.catalogue import TASKS
from mcbench.composition import defaults
from mcbench.leaderboard import MARKDOWN, render, tabulate_records
from mcbench.record import Result
from mcbench.report import table
from mcbench.suites import headline, no_room, room_in, suite_means
from mcbench.task import Estimate

(ZEROSHOT,) = suite_means()


def zeroshot() -> list[Result]:
    """Eight results: the metric that counts for the suite is k per cent of 1000, the other one is nonsense."""
    found = []
    for at, (task, metric) in enumerate(ZEROSHOT.metrics.items()):
        value = (400 + 50 * at) / 1000
        wanted = Estimate(value, 1000, math.sqrt(value * (1 - value) / 999), 400 + 50 * at)
        main = TASKS.get(task).metric
        other = Estimate(0.01, 1000, 0.003, 10)
        counted = wanted if main == metric else other
        also = {"acc_norm" if main == "acc" else "acc": wanted if main != metric else other}
        found.append(
            sample_result(
                task, metric=main, value=counted.value, standard_error=counted.standard_error, k=counted.k, n=1000,
                also=also, baseline=None, difference=None, difference_error=None,
            )
        )  # fmt: skip
    return found


def changed(results: Sequence[Result], task: str, **changes: object) -> list[Result]:
    return [dataclasses.replace(r, **changes) if r.task == task else r for r in results]  # type: ignore[arg-type]


def test_every_task_of_a_mean_is_a_member_of_its_suite_and_has_the_metric() -> None:
    for mean in suite_means():
        assert list(mean.metrics) == defaults()["suites"][mean.suite]
        for task, metric in mean.metrics.items():
            assert metric in (TASKS.get(task).metric, *TASKS.get(task).also)  # type: ignore[attr-defined]


def test_the_mean_is_that_of_the_stated_metrics_with_the_error_of_independent_shares() -> None:
    shares = [(400 + 50 * at) / 1000 for at in range(8)]
    score = ZEROSHOT.score(zeroshot())
    assert score is not None
    assert score.value == pytest.approx(sum(shares) / 8)
    assert score.standard_error == pytest.approx(math.sqrt(sum(p * (1 - p) / 999 for p in shares)) / 8)


@pytest.mark.parametrize("change", [{"partial": True}, {"value": None, "skipped": "no data"}], ids=["part", "skipped"])
def test_a_task_that_is_not_complete_leaves_the_mean_blank(change: dict[str, object]) -> None:
    results = changed(zeroshot(), "mathqa", **change)
    assert ZEROSHOT.score(results) is None
    assert ZEROSHOT.incomplete(results) == ["mathqa"]
    text = " ".join(table(sample_record(results=tuple(results))).split())
    assert "mean (acc_norm: piqa, hellaswag; acc: arc-easy," in text
    assert "mmlu): blank, for mathqa did not run in full" in text


def test_a_sample_of_a_set_leaves_the_mean_blank() -> None:
    data = {"validation": {"source": "hellaswag_val_1000.jsonl", "sha256": "a", "rows": 1000, "official": 10042}}
    results = changed(zeroshot(), "hellaswag", details={"data": data})
    assert ZEROSHOT.score(results) is None and ZEROSHOT.incomplete(results) == ["hellaswag"]
    text = " ".join(table(sample_record(results=tuple(results))).split())
    assert "blank, for hellaswag has 1000 of the 10042 rows of its validation split" in text
    whole = changed(zeroshot(), "hellaswag", details={"data": {"validation": data["validation"] | {"rows": 10042}}})
    assert ZEROSHOT.score(whole) is not None
    data = {"validation": data["validation"] | {"rows": 10042, "content": "not the published content"}}
    other = changed(zeroshot(), "hellaswag", details={"data": data})
    assert ZEROSHOT.score(other) is None
    assert ZEROSHOT.why_blank(other) == "hellaswag has a validation split that is not the published content"
    both = changed(results, "mathqa", partial=True)
    assert ZEROSHOT.why_blank(both).startswith("mathqa did not run in full and hellaswag has 1000 of")


def test_a_run_prints_the_mean_only_where_the_whole_suite_was_asked() -> None:
    whole = " ".join(table(sample_record(results=tuple(zeroshot()))).split())
    assert "winogrande, mathqa, mmlu): 57.5 ± 0.5" in whole
    assert "zeroshot8" not in table(sample_record(results=tuple(zeroshot()[:-1])))


def test_the_leaderboard_has_the_mean_in_complete_rows_only() -> None:
    less = sample_record(method="less", results=tuple(zeroshot()[:-1]))
    tables, _ = tabulate_records([sample_record(results=tuple(zeroshot())), less])
    head, _, *rows = [line for line in render(tables)[MARKDOWN].splitlines() if line.startswith("|")]
    cells = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in rows[:2]}
    assert head.split("|")[-2].strip() == f"{ZEROSHOT.wording} %"
    assert cells == {"pmq+gptq": "57.5 ± 0.5", "less": ""}


def shares(**differences: float) -> list[Result]:
    """Tasks of 100 items with these differences to an uncompressed model that answers 80 % right."""
    return [
        sample_result(name, n=100, value=0.8 + by, baseline=0.8, difference=by, difference_error=0.02, chance=0.25)
        for name, by in differences.items()
    ]


@pytest.mark.parametrize(
    ("score", "n", "chance", "reason"),
    [
        (1.0, 300, 0.5, "100.0 % in 16 bits, within two standard errors of 100 %"),
        (0.99, 100, 0.25, "99.0 % in 16 bits, within two standard errors of 100 %"),
        (0.98, 300, 0.25, ""),  # two standard errors are 1.6 points
        (0.227, 300, 0.25, "22.7 % in 16 bits, within two standard errors of guessing (25.0 %)"),
        (0.31, 300, 0.25, ""),
        (0.29, 300, 0.25, "29.0 % in 16 bits, within two standard errors of guessing (25.0 %)"),
        (0.0, 300, 0.0, "0.0 % in 16 bits, within two standard errors of nothing"),
        (0.5, 300, None, ""),
        (None, 300, 0.5, ""),  # who knows
    ],
)
def test_a_task_has_room_by_the_score_of_the_uncompressed_model(
    score: float | None, n: int, chance: float | None, reason: str
) -> None:
    assert no_room(score, n, chance) == reason


def test_a_headline_counts_tasks_with_room_and_says_what_remains_without_the_largest() -> None:
    results = shares(a=-0.1, b=-0.5, c=0.0)
    full = sample_result("full", n=100, value=0.1, baseline=1.0, difference=-0.9, difference_error=0.03, chance=0.25)
    found = headline([*results, full])
    assert found is not None and found.tasks == ("a", "b", "c") and list(found.left_out) == ["full"]
    assert found.value == pytest.approx(-0.2) and found.standard_error == pytest.approx(0.02 / 3**0.5)
    assert found.without is not None and found.without.task == "b"
    assert found.without[1:] == pytest.approx((-0.05, 0.02 / 2**0.5))
    gain = headline(shares(a=0.1, b=-0.05, c=0.02))
    assert gain is not None and gain.without is not None and gain.without.task == "a"
    assert headline(results[:1]) is None


def test_a_floor_of_the_compressed_model_does_not_decide_whether_a_task_has_room() -> None:
    (result,) = shares(a=-0.55)  # at chance when compressed
    assert result.value == pytest.approx(0.25) and room_in(result) == ""


def test_the_report_and_the_table_leave_a_task_without_room_out_of_the_mean_and_say_why() -> None:
    full = {"n": 100, "baseline": 1.0, "chance": 0.25, "difference_error": 0.03}
    one = sample_record(results=(*shares(a=-0.1, b=-0.3), sample_result("full", value=0.9, difference=-0.1, **full)))
    two = dataclasses.replace(
        one,
        method="bsp+gptq",
        asked="bsp",
        results=(*shares(a=-0.55, b=-0.3), sample_result("full", value=1.0, difference=0.0, **full)),
    )
    told = " ".join(table(one).split())
    assert "difference -20.0 ± 1.4 points over 2 tasks of shares; -10.0 ± 2.0 points without b" in told
    assert "no room full, not in the mean difference: 100.0 % in 16 bits" in told
    tables, notes = tabulate_records([one, two])
    text = render(tables, notes)[MARKDOWN]
    assert "full counts in no mean: 100.0 % in 16 bits, within two standard errors of 100 %" in text
    assert "mean of 2 (acc %)" in text and "mean of 2 tasks, points" in text
    # the second row has a at its floor: which tasks count is the same for all rows
    assert "-42.5 ± 1.4*" in text and "-30.0 ± 2.0* without a" in text


def test_the_mean_of_a_published_suite_keeps_all_of_its_tasks_and_marks_those_without_room() -> None:
    results = zeroshot()
    results[0] = dataclasses.replace(results[0], baseline=1.0, chance=0.5)
    told = " ".join(table(sample_record(results=tuple(results))).split())
    assert "zeroshot8 mean (" in told
    assert f"no room {results[0].task}, counted in the zeroshot8 mean as papers do: 100.0 % in 16 bits" in told
