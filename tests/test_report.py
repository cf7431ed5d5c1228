"""The table of a run is readable in 100 columns and hides nothing."""

from __future__ import annotations

import pytest
from records import sample_perplexity, sample_record, sample_result

from mcbench.report import FALLBACKS, table, with_error

SKIPPED = sample_result(
    "mini-humaneval", metric="pass@1", value=None, n=0, k=None, standard_error=None, baseline=None, difference=None,
    difference_error=None, skipped="programs would run with rlimits only; --allow-code-execution runs them",
)  # fmt: skip


def test_bits_stand_there_four_ways_beside_what_was_asked() -> None:
    text = table(sample_record())
    heads = "asked (label) routed experts label whole model stored"
    assert heads in " ".join(text.split())
    assert "2.4 2.000 2.400 5.690 6.100" in " ".join(text.split())


def test_every_task_has_its_count_error_and_difference() -> None:
    lines = [" ".join(line.split()) for line in table(sample_record()).splitlines()]
    assert "mini-piqa acc % 100 50.0 70.0 60.0 ± 4.9 -10.0 ± 3.0" in lines
    assert "mini-perplexity perplexity 40 6.000 7.500 ± 0.300 +1.500 ± 0.100" in lines


def test_a_difference_within_the_noise_is_marked() -> None:
    text = table(sample_record(results=(sample_result(difference=-0.02),)))
    assert "-2.0 ± 3.0  ~" in text
    assert "may be chance" in text
    assert "may be chance" not in table(sample_record())


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (5.1664, 0.0701, "5.166 ± 0.070"),
        (32004.3, 11.274, "32004 ± 11"),
        (1.04e6, 1.26e5, "1040000 ± 126000"),
        (2.5e8, 3.1e7, "2.5e+08 ± 3.1e+07"),
    ],
)
def test_a_figure_and_its_error_end_in_the_same_digit(value: float, error: float, shown: str) -> None:
    assert with_error(sample_perplexity(), value, error) == shown


def test_what_was_skipped_or_done_otherwise_is_said() -> None:
    text = table(sample_record(results=(SKIPPED, sample_result(partial=True)), fallbacks=("one", "two")))
    assert "skipped    mini-humaneval: programs would run" in text
    assert "--limit left items out" in text
    assert "fallback   one\nfallback   two\n" in text + "\n"
    many = table(sample_record(fallbacks=tuple(f"the {at}th" for at in range(FALLBACKS + 3))))
    assert f"the {FALLBACKS - 1}th" in many and "and 3 more, see the record" in many


def test_an_uncompressed_run_shows_no_difference() -> None:
    alone = sample_perplexity(baseline=None, difference=None, difference_error=None)
    assert "difference" not in table(sample_record(results=(alone,)))


def test_the_table_fits_a_hundred_columns() -> None:
    infinite = sample_perplexity(value=float("inf"), difference=float("inf"), difference_error=float("nan"))
    long = sample_result("mini-needle-multikey", metric="exact_match", difference=-0.001)
    seconds = {f"a stage of the run {i}": 12345.6 for i in range(8)}
    text = table(
        sample_record(results=(infinite, long, SKIPPED), fallbacks=("f" * 40 + " " + "g" * 90,), stages=seconds)
    )
    assert max(len(line) for line in text.splitlines()) <= 100
