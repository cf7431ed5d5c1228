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
from mcbench.suites import suite_means
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
