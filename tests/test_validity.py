"""The validity verdict says what the records say: a good instrument passes, a dull one fails the line about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import sample_perplexity, sample_record, sample_result, with_bits
from scripts import script

from mcbench.allocation import BitAllocation
from mcbench.errors import BadInput
from mcbench.leaderboard import tabulate_records
from mcbench.record import FILE_NAME, Record, Result

ROOT = Path(__file__).parents[1]


validity = script("validity")
LOST = {4: 0.0, 3: 0.01, 2: 0.1, 1: 0.4}  # of a share, at uniform widths


def results(lost: float | None, value: float = 0.75) -> tuple[Result, ...]:
    """Every family at `value` in 16 bits, less what is lost; chance is a quarter and an error 0.02."""
    found = []
    for task in validity.suite():
        if task == validity.perplexity():
            after = 5.0 * (1 + (lost or 0.0))
            base = {"baseline": 5.0, "difference": after - 5, "difference_error": 0.01} if lost is not None else {}
            found.append(sample_perplexity(value=after, standard_error=0.05, **(NOTHING | base)))
        else:
            now = value - (lost or 0.0)
            base = {"baseline": value, "difference": now - value, "difference_error": 0.02} if lost is not None else {}
            found.append(
                sample_result(task, value=now, k=None, n=300, standard_error=0.02, chance=0.25, **(NOTHING | base))
            )
    return tuple(found)


NOTHING: dict[str, Any] = {"baseline": None, "difference": None, "difference_error": None}


def records(
    value: float = 0.75, lost: dict[int, float] = LOST, spread: Callable[[int], float] = lambda seed: 0.1 + 0.05 * seed
) -> list[Record]:
    """One record for each configuration."""
    kept = BitAllocation(np.full((2, 4), 16), attention=16, shared=16)
    plain = sample_record(
        method="none", asked="none", allocation=kept, calibration=None, baseline="", fingerprint="b" * 64,
        results=results(None, value),
    )  # fmt: skip
    found = [with_bits(plain, asked=None, asked_as="", expert=16.0, label=16.0)]
    for width, configuration in validity.UNIFORM.items():
        changed = sample_record(
            method=f"{configuration.method}+gptq", asked=configuration.method, results=results(lost[width], value)
        )
        found.append(with_bits(changed, asked=float(width), asked_as="expert", expert=float(width)))
    for seed, configuration in enumerate(validity.RANDOM):
        changed = sample_record(
            method=f"{configuration.method}+gptq", asked=configuration.method, results=results(spread(seed), value)
        )
        found.append(with_bits(changed, asked=2.0, asked_as="expert", expert=2.0))
    return found


def verdicts(found: list[Record]) -> dict[str, bool | None]:
    """Whether each line is met, by the words it starts with."""
    each = validity.evidence(tabulate_records(found)[0], "reference")
    return {v.text[:14]: v.met for v in validity.verdicts(each)}


def test_a_good_instrument_meets_every_line_that_records_can_tell() -> None:
    met = verdicts(records())
    assert met.pop("what is lost i") is None  # an oracle tells that, not a record
    assert all(met.values()), met


@pytest.mark.parametrize(
    ("found", "failing"),
    [
        (records(value=0.44), "in 16 bits at "),
        (records(value=0.995), "in 16 bits at "),
        (records(lost=LOST | {3: 0.2}), "uniform 3 bits"),
        (records(lost=LOST | {3: 0.0}), "uniform 3 bits"),
        (records(lost=LOST | {2: 0.03}), "uniform 2 bits"),
        (records(lost=LOST | {1: 0.3}), "uniform 1 bit "),
        (records(spread=lambda seed: 0.1 + 0.001 * seed), "random allocat"),
    ],
)
def test_a_dull_instrument_fails_the_line_that_is_about_it(found: list[Record], failing: str) -> None:
    met = verdicts(found)
    assert met[failing] is False, met


def test_a_missing_record_is_said_and_nothing_is_judged_from_it(tmp_path: Path) -> None:
    for number, record in enumerate(records()[:-1]):
        record.save(tmp_path / str(number) / FILE_NAME)
    text = validity.judgement([tmp_path], ["reference"])
    assert "There is no record of random-4" in text
    assert "**Not judged**: random allocations" in text


def test_records_of_two_kinds_are_not_judged_together() -> None:
    found = records()
    other = dataclasses.replace(
        found[1], results=tuple(dataclasses.replace(r, protocol=f"{r.protocol}x") for r in found[1].results)
    )
    with pytest.raises(BadInput, match="do not compare with each other"):
        validity.evidence(tabulate_records([*found[:1], *found[2:], other])[0], "reference")


def test_the_committed_verdict_is_what_the_committed_records_give() -> None:
    sources = [ROOT / "leaderboards" / "records"]
    committed = ROOT / "leaderboards" / "notes.md"
    assert committed.read_text(encoding="utf-8") == validity.judgement(sources, validity.MODELS.split(","))
