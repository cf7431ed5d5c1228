"""Runs are compared sample by sample, from what lies on disk, and only where they compare."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import sample_record
from runs import answers, windows, write_run
from scipy import stats
from sealing import reseal

from mcbench.allocation import BitAllocation
from mcbench.cli import main
from mcbench.errors import BadInput, UnknownName
from mcbench.record import FILE_NAME, SCHEMA, Fidelity, Record
from mcbench.uncertainty import score_interval
from mcbench.versus import Comparison, compare, kinds, table

PIQA, MMLU, GSM = "mini-piqa", "mini-mmlu", "mini-gsm8k"
RIGHT = [True] * 70 + [False] * 30


def quiz(lost: int, gained: int, passages: list[str] | None = None) -> list[dict[str, Any]]:
    """The answers of a run that lost so many of the right ones of RIGHT and gained so many of the wrong ones."""
    right = [at >= lost if was else at < 70 + gained for at, was in enumerate(RIGHT)]
    return answers(right, passages or ())


def pair(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], **changes: Any) -> Comparison:
    first = write_run(tmp_path / "before", before, uncompressed=True)
    return compare([first, write_run(tmp_path / "after", after, **changes)])


def test_a_task_has_its_difference_flips_interval_and_exact_p(tmp_path: Path) -> None:
    (found,) = pair(tmp_path, {PIQA: quiz(0, 0)}, {PIQA: quiz(12, 2)}).others
    (task,) = found.contrasts
    assert (task.reference, task.value, task.lost, task.gained) == (0.7, 0.6, 12, 2)
    assert task.difference == pytest.approx(-0.1)
    assert task.interval == score_interval(12, 2, 100, 0.95)
    assert task.p == task.p_holm == pytest.approx(stats.binomtest(2, 14).pvalue)


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path, {PIQA: quiz(3, 1), "mini-perplexity": windows([20.0, 21.0, 22.0, 24.0, 25.0])})
    (found,) = compare([run, run]).others
    assert [(c.difference, c.p, c.same_answers) for c in found.contrasts] == [(0, 1, 1), (0, 1, None)]
    assert found.contrasts[0].choice_divergence == 0


def test_perplexities_differ_by_their_ratio(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(25, 4, 60)
    worse = base + np.random.default_rng(1).normal(0.5, 0.2, 60)
    (found,) = pair(tmp_path, {"text": windows(base.tolist())}, {"text": windows(worse.tolist())}).others
    (task,) = found.contrasts
    assert task.difference == pytest.approx(math.exp(worse.sum() / 600) / math.exp(base.sum() / 600) - 1)
    assert task.value / task.reference - 1 == pytest.approx(task.difference)
    nats = stats.ttest_1samp((worse - base) / 10, 0).confidence_interval(0.95)
    assert task.interval == pytest.approx([math.expm1(end) for end in nats], rel=0.1)
    assert found.overall is None  # a perplexity is never averaged with shares


def test_the_interval_of_one_long_text_allows_for_windows_that_depend_on_their_neighbours(tmp_path: Path) -> None:
    base = [25.0] * 64
    alone = np.random.default_rng(0).normal(0.3, 0.2, 64)
    together = np.sort(alone)  # the same differences, but each like its neighbours
    width = []
    for at, worse in enumerate((alone, together)):
        after = (np.array(base) + worse).tolist()
        found = pair(tmp_path / str(at), {"text": windows(base, texts=1)}, {"text": windows(after, texts=1)})
        (task,) = found.others[0].contrasts
        assert task.interval is not None and task.clusters == 5 and task.p < 0.05
        assert "windows of one text" in " ".join(table(found).split())
        width.append(task.interval.high - task.interval.low)
    assert width[1] > 2 * width[0]


def test_samples_that_share_a_passage_count_as_one_draw(tmp_path: Path) -> None:
    passages = [f"story {at // 10}" for at in range(100)]
    alone = pair(tmp_path / "alone", {PIQA: quiz(0, 0)}, {PIQA: quiz(20, 0)}).others[0].contrasts[0]
    shared = pair(tmp_path / "shared", {PIQA: quiz(0, 0, passages)}, {PIQA: quiz(20, 0, passages)})
    together = shared.others[0].contrasts[0]
    assert (together.n, together.clusters) == (100, 10)
    assert alone.interval is not None and together.interval is not None
    assert together.interval.high - together.interval.low > 1.8 * (alone.interval.high - alone.interval.low)
    assert together.p == pytest.approx(0.5, abs=0.02)  # two stories lost: the signs of two flips
    assert "100 samples count as 10" in " ".join(table(shared).split())


def test_p_is_corrected_for_every_task_and_run_looked_at(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {PIQA: quiz(0, 0), MMLU: quiz(0, 0)}, uncompressed=True)
    others = [
        write_run(tmp_path / name, {PIQA: quiz(12, 2), MMLU: quiz(4, 4)}, method=f"{name}+gptq") for name in ("b", "c")
    ]
    comparison = compare([first, *others])
    assert comparison.tests == 4
    assert [c.p_holm for other in comparison.others for c in other.contrasts] == pytest.approx(
        [4 * stats.binomtest(2, 14).pvalue, 1, 4 * stats.binomtest(2, 14).pvalue, 1]
    )


def test_every_run_is_shown_however_many(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {PIQA: quiz(0, 0)})
    shown = table(compare([run] * 30))
    assert shown.count("- A ") == 29 and "run 30 - A" in shown


def test_distances_from_16_bits_stand_together_only_over_one_text(tmp_path: Path) -> None:
    layers = (0.9, 0.9)
    read = Fidelity("text@1", 4, 400, 0.1, None, 0.9, 0.9, layers, layers, layers, layers, layers)
    texts = {"a": read, "b": dataclasses.replace(read, text="text@2", divergence=0.2)}
    first, second = (write_run(tmp_path / n, {PIQA: quiz(0, 0)}, fidelity=text) for n, text in texts.items())
    shown = table(compare([first, *[first] * 27, second]))
    rows = [line for line in shown[shown.index("from uncompressed") :].splitlines() if " 0.1000 " in line]
    assert [row.split("  ")[0] for row in (rows[0], rows[-1])] == ["A", "run 28"] and len(rows) == 28
    assert "0.2000" not in shown and "run 29: another text was read" in shown


def test_kinds_of_task_come_worst_first(tmp_path: Path) -> None:
    before = {PIQA: quiz(0, 0), MMLU: quiz(0, 0), GSM: quiz(0, 0)}
    (found,) = pair(tmp_path, before, {PIQA: quiz(2, 0), MMLU: quiz(4, 0), GSM: quiz(30, 0)}).others
    means = {kind: (round(mean.difference, 9), mean.tasks) for kind, mean in found.kinds.items()}
    assert next(iter(means)) in ("reasoning", "generation") and means["generation"] == (-0.3, (GSM,))
    assert means["recall"] == (-0.03, (PIQA, MMLU)) and means["few-shot"] == (-0.04, (MMLU,))
    assert found.overall is not None and found.overall.difference == pytest.approx(-0.12)


@pytest.mark.parametrize(
    ("task", "counterpart", "sorts"),
    [
        ("mmlu", "", ("recall",)),
        ("mmlu-5shot", "", ("recall", "few-shot")),
        (MMLU, "mmlu", ("recall", "few-shot")),  # its questions come after five others
        ("gsm8k", "", ("reasoning", "few-shot", "generation")),
        (GSM, "gsm8k", ("reasoning", "generation")),  # its questions stand alone
        ("mini-needle-multikey", "niah-multikey", ("long context",)),
    ],
)
def test_few_shot_is_what_comes_after_examples(task: str, counterpart: str, sorts: tuple[str, ...]) -> None:
    (result, *_) = sample_record().results
    assert kinds(dataclasses.replace(result, task=task, counterpart=counterpart)) == sorts


def test_seeds_of_one_method_show_their_spread(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {PIQA: quiz(0, 0)}, uncompressed=True)
    drawn = sample_record().calibration
    assert drawn is not None
    seeds = [
        write_run(
            tmp_path / str(seed),
            {PIQA: quiz(lost, 0)},
            method=f"random(seed={seed})+gptq",
            seed=seed,
            fingerprint=str(seed),
            calibration=dataclasses.replace(drawn, seed=seed, digest=str(seed) * 64),
        )
        for seed, lost in enumerate((10, 14, 18))
    ]
    comparison = compare([first, *seeds])
    (spread,) = comparison.spreads
    assert spread.seeds == (0, 1, 2) and spread.values == pytest.approx((-0.1, -0.14, -0.18))
    assert spread.deviation == pytest.approx(0.04)
    assert "different draws from the same text" in table(comparison)


def test_draws_of_one_method_show_their_spread_whatever_the_seed_of_the_run(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {PIQA: quiz(0, 0)}, uncompressed=True)
    draws = [
        write_run(tmp_path / str(at), {PIQA: quiz(10 + at, 0)}, method=method, fingerprint=str(at))
        for at, method in enumerate(("random(seed=3)+gptq", "random(seed=5)+gptq", "x(seed=1, a=2)", "x(a=2, seed=4)"))
    ]
    spreads = compare([first, *draws]).spreads
    assert [(spread.method, spread.seeds) for spread in spreads] == [("random+gptq", (3, 5)), ("x(a=2)", (1, 4))]


def test_divergence_is_that_of_the_choices(tmp_path: Path) -> None:
    (found,) = pair(tmp_path, {PIQA: quiz(0, 0)}, {PIQA: quiz(10, 0)}).others
    p = np.exp([-2.0, -1.0]) / np.exp([-2.0, -1.0]).sum()
    assert found.contrasts[0].choice_divergence == pytest.approx(0.1 * stats.entropy(p, p[::-1]))
    assert found.contrasts[0].same_answers == 0.9


def test_the_table_fits_a_page_and_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "a", {PIQA: quiz(0, 0), "text": windows([20.0] * 9)}, uncompressed=True)
    second = write_run(tmp_path / "b", {PIQA: quiz(12, 2), "text": windows([21.0] * 9)})
    assert main(["compare", str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if not line.startswith(("A  ", "B  "))]
    assert max(map(len, rows)) <= 100
    assert "-10.0" in shown and "0.013" in shown and "+10.5 %" in shown
    assert main(["compare", str(first), str(second), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"][0]["tasks"][0]["difference"] == pytest.approx(-0.1)
    assert told["runs"][0]["tasks"][1]["difference"] == pytest.approx(math.expm1(0.1))


# -- what does not compare


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": dataclasses.replace(sample_record().model, digest="9" * 64)}, "different weights"),
        ({"evaluation": {"dtype": "bfloat16"}}, "different precisions, float32 and bfloat16"),
        (
            {"calibration": dataclasses.replace(sample_record().calibration, digest="9" * 64)},  # type: ignore[type-var]
            "different tokens",
        ),
        ({"allocation": BitAllocation(sample_record().allocation.widths, attention=8)}, "different precisions"),
    ],
    ids=["weights", "dtype", "calibration", "precision"],
)
def test_unlike_runs_are_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    first = write_run(tmp_path / "a", {PIQA: quiz(0, 0)})
    second = write_run(tmp_path / "b", {PIQA: quiz(1, 0)}, **changes)
    with pytest.raises(BadInput, match=reason):
        compare([first, second])


def test_another_protocol_is_refused(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, {PIQA: quiz(0, 0)}) for name in "ab")
    record = Record.load(second)
    (result,) = record.results
    changed = dataclasses.replace(result, protocol=f"{PIQA}@99999999")
    dataclasses.replace(record, results=(changed,)).save(second / FILE_NAME)
    with pytest.raises(BadInput, match="asked in different ways in mini-piqa"):
        compare([first, second])


def test_runs_of_different_limits_are_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {PIQA: quiz(0, 0)})
    second = write_run(tmp_path / "b", {PIQA: quiz(0, 0)[:50]})
    told = (
        "b' and '.*a' do not compare in mini-piqa: .* did not answer the same samples: they have 50 and 100; .* --limit"
    )
    with pytest.raises(BadInput, match=told):
        compare([first, second])


def test_two_baselines_that_differ_are_refused(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, {PIQA: quiz(0, 0)}) for name in "ab")
    for folder, baseline in ((first, 0.7), (second, 0.72)):
        record = Record.load(folder)
        results = tuple(dataclasses.replace(r, baseline=baseline) for r in record.results)
        dataclasses.replace(record, results=results).save(folder / FILE_NAME)
    with pytest.raises(BadInput, match="two baselines differ in mini-piqa"):
        compare([first, second])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.replace('"correct": true', '"correct": false', 1), "line 2 is not as it was written"),
        (
            lambda text: reseal(text.replace('"correct": true', '"correct": false', 1)),
            "correct is False, and the answer",
        ),
        (lambda text: text[:-40], "it is cut short"),
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "give 0.707071 over 99, the record 0.7 over 100"),
        (lambda text: text.splitlines()[0] + "\n", "damaged"),
        (
            lambda text: reseal(text.replace('"schema": 2', '"schema": 3')),
            "are of schema 3, this mcbench knows up to 2",
        ),
        (lambda text: reseal(text.replace("e" * 64, "f" * 64)), "belong to another model"),
        (lambda text: reseal(text.replace('"correct"', '"corect"')), "damaged"),
        (lambda text: "[]\n[]\n", "line 1 is not as it was written"),
        (lambda text: "", "it is cut short"),
    ],
    ids=[
        "edited",
        "edited and sealed again",
        "cut",
        "a line short",
        "empty",
        "newer",
        "another model",
        "a field renamed",
        "no objects",
        "nothing",
    ],
)
def test_samples_that_are_not_those_of_the_record_are_refused(tmp_path: Path, damage: Any, reason: str) -> None:
    first, second = (write_run(tmp_path / name, {PIQA: quiz(0, 0)}) for name in "ab")
    (path,) = second.glob("*.jsonl")
    path.write_text(damage(path.read_text()))
    with pytest.raises(BadInput, match=reason):
        compare([first, second])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.replace('"seed": 0', '"seed": 1', 1), "changed after it was written"),
        (lambda text: text.replace(f'"schema": {SCHEMA}', '"schema": 99', 1), "of schema 99"),
        (lambda text: text[:200], "damaged or cut short"),
    ],
    ids=["edited", "newer", "truncated"],
)
def test_a_record_that_is_not_whole_is_refused(tmp_path: Path, damage: Any, reason: str) -> None:
    first, second = (write_run(tmp_path / name, {PIQA: quiz(0, 0)}) for name in "ab")
    (second / FILE_NAME).write_text(damage((second / FILE_NAME).read_text()))
    with pytest.raises(BadInput, match=reason):
        compare([first, second])


def test_records_without_their_samples_compare_as_with_them(tmp_path: Path) -> None:
    passages = [f"text {at // 4}" for at in range(100)]
    given = {PIQA: quiz(0, 0), MMLU: quiz(0, 0, passages), "mini-perplexity": windows([2.0] * 40)}
    taken = {PIQA: quiz(12, 2), MMLU: quiz(9, 4, passages), "mini-perplexity": windows([2.1, 2.3] * 20)}
    first, second = write_run(tmp_path / "a", given, uncompressed=True), write_run(tmp_path / "b", taken)
    (beside,) = compare([first, second]).others
    for run in (first, second):
        for path in run.glob("*.jsonl"):
            path.unlink()
    (alone,) = compare([first, second]).others
    for one, other in zip(beside.contrasts, alone.contrasts, strict=True):
        for name in ("difference", "interval", "lost", "gained", "p", "clusters", "n"):
            assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("bare", ["", "a", "b", "ab"])
@pytest.mark.parametrize("texts", [2, 10])
def test_a_perplexity_per_word_compares_by_words(tmp_path: Path, bare: str, texts: int) -> None:
    def worded(losses: list[float]) -> list[dict[str, Any]]:  # the words stand with the first window of a text
        rows = sorted(windows(losses, texts=texts), key=lambda row: int(row["id"]))
        return [{**row, "words": 0 if at % (40 // texts) else 120 // texts} for at, row in enumerate(rows)]

    first = write_run(tmp_path / "a", {"text": worded([2.0] * 40)}, uncompressed=True)
    second = write_run(tmp_path / "b", {"text": worded([2.1, 2.3] * 20)})
    for name in bare:
        for path in (tmp_path / name).glob("*.jsonl"):
            path.unlink()
    (task,) = compare([first, second]).others[0].contrasts
    assert (task.reference, task.value) == pytest.approx((math.exp(80 / 120), math.exp(88 / 120)))
    assert task.difference == pytest.approx(math.expm1(8 / 120))
    assert task.interval is not None and task.interval.low < task.difference < task.interval.high < 0.15


@pytest.mark.parametrize("bare", ["a", "b"])
def test_a_record_alone_compares_with_a_run_that_has_its_samples(tmp_path: Path, bare: str) -> None:
    passages = [f"text {at // 4}" for at in range(100)]
    given = {PIQA: quiz(0, 0), MMLU: quiz(0, 0, passages), "one": windows([2.0] * 40, texts=1)}
    taken = {PIQA: quiz(12, 2), MMLU: quiz(9, 4, passages), "one": windows([2.1, 2.3] * 20, texts=1)}
    given["many"], taken["many"] = windows([2.0] * 40, texts=8), windows([2.1, 2.4] * 20, texts=8)
    first, second = write_run(tmp_path / "a", given, uncompressed=True), write_run(tmp_path / "b", taken)
    (beside,) = compare([first, second]).others
    for path in (tmp_path / bare).glob("*.jsonl"):
        path.unlink()
    (mixed,) = compare([first, second]).others
    for one, other in zip(beside.contrasts, mixed.contrasts, strict=True):
        for name in ("difference", "interval", "lost", "gained", "p", "clusters", "n"):
            assert getattr(one, name) == getattr(other, name), name


def test_samples_that_are_nowhere_are_asked_for(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {PIQA: quiz(0, 0)})
    record = Record.load(first)
    bare = [dataclasses.replace(result, outcomes=(), weights=(), clusters=()) for result in record.results]
    (tmp_path / "b").mkdir()
    dataclasses.replace(record, results=tuple(bare)).save(tmp_path / "b" / FILE_NAME)
    with pytest.raises(BadInput, match="samples of 'mini-piqa' are neither in the record"):
        compare([tmp_path / "b", tmp_path / "b"])


def test_a_folder_stands_for_the_only_run_in_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "one", {PIQA: quiz(0, 0)})
    assert compare([run, tmp_path / "runs"]).others[0].run.record == Record.load(run)
    write_run(tmp_path / "runs" / "two", {PIQA: quiz(0, 0)})
    with pytest.raises(BadInput, match=f"holds 2 runs: name one of them, such as '{run}'"):
        compare([run, tmp_path / "runs"])
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="holds no record.json"):
        compare([run, tmp_path / "none"])


def test_tasks_are_chosen_by_name_and_must_be_there(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, {PIQA: quiz(0, 0), MMLU: quiz(1, 0)}) for name in "ab")
    chosen = compare([first, second], tasks=MMLU).others[0].contrasts
    assert [c.task for c in chosen] == [MMLU]
    with pytest.raises(UnknownName, match="did you mean 'mini-mmlu'"):
        compare([first, second], tasks="mini-mmlo")
    third = write_run(tmp_path / "c", {GSM: quiz(0, 0)})
    with pytest.raises(BadInput, match="no answered task in common"):
        compare([first, third])


@pytest.mark.parametrize(
    "arguments",
    [["one"], ["one", "one", "--tasks", ""], ["one", "one", "--tasks", ","], ["one", "absent"], ["one", ""],
     ["one", "one", "--confidence", "95"], ["one", "one", "--confidence", "nan"], ["one", "one", "--margin", "1"],
     ["one", "one", "--gate", "--margin", "0"], ["one", "one", "--gate", "--perplexity-margin", "nan"],
     ["one", "one", "--each"]],
)  # fmt: skip
def test_wrong_arguments_end_with_one_sentence(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "one", {PIQA: quiz(0, 0)})
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("mcbench: ")


def test_a_task_without_room_counts_in_no_mean_and_what_remains_without_the_largest_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = answers([True] * 100)
    before = {PIQA: full, MMLU: quiz(0, 0), GSM: quiz(0, 0)}
    after = {PIQA: answers([at >= 30 for at in range(100)]), MMLU: quiz(4, 0), GSM: quiz(40, 0)}
    comparison = pair(tmp_path, before, after)
    (found,) = comparison.others
    assert found.overall is not None and found.overall.tasks == (MMLU, GSM)
    assert found.overall.difference == pytest.approx(-0.22) and found.overall.most == GSM
    assert found.overall.without is not None and found.overall.without.difference == pytest.approx(-0.04)
    assert [bool(c.no_room) for c in found.contrasts] == [True, False, False]
    assert found.kinds["recall"].tasks == (MMLU,)
    told = " ".join(table(comparison).split())
    assert "mean of 2 tasks" in told and "without mini-gsm8k share % -4.0" in told
    assert "mini-piqa, not in any mean: 100.0 % in 16 bits, within two standard errors of 100 %" in told
    runs = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert main(["compare", *runs, "--gate", "--margin", "30"]) == 0
    assert "over 2 tasks (without mini-piqa, which has no room)" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", *runs, "--gate", "--margin", "15", "--each"]) == 1
    capsys.readouterr()
    assert main(["compare", *runs, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["runs"][0]
    assert shown["overall"]["without"]["difference"] == pytest.approx(-0.04) and shown["tasks"][0]["no_room"]
