"""Small runs on disk, record and samples, for tests: `from runs import write_run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from records import sample_record

from mcbench.allocation import BitAllocation
from mcbench.record import FILE_NAME, Record, Result
from mcbench.task import Row, SampleFile, Scores, mean, perplexity

BASELINE = "b" * 64


def answers(right: Sequence[bool], passages: Sequence[str] = ()) -> list[Row]:
    """Samples of a task of two choices."""
    rows: list[Row] = [
        {"id": str(at), "group": "", "answer": int(r), "gold": 1, "acc": r, "correct": r, "truncated": 0}
        | {"loglikelihoods": [-2.0, -1.0] if r else [-1.0, -2.0]}
        for at, r in enumerate(right)
    ]
    return [{**row, "passage": name} for row, name in zip(rows, passages, strict=True)] if passages else rows


def windows(losses: Sequence[float], tokens: int = 10, texts: int | None = None) -> list[Row]:
    """Samples of a perplexity, a text for each window, or `texts` in all."""
    return [
        {"id": str(at % (texts or len(losses))), "group": "", "loss": loss, "tokens": tokens, "truncated": 0}
        for at, loss in enumerate(losses)
    ]


def write_run(folder: Path, tasks: Mapping[str, list[Row]], *, uncompressed: bool = False, **changes: Any) -> Path:
    """A finished run with these samples: its record and a sample file for each task."""
    fingerprint = BASELINE if uncompressed else str(changes.pop("fingerprint", "e" * 64))
    results = []
    for name, rows in tasks.items():
        scores = _scores(name, rows)
        file = SampleFile(folder / f"{scores.protocol}.jsonl", _owner(scores.protocol, fingerprint))
        file.read()
        file.append(dict(enumerate(rows)))
        results.append(Result.of(scores, counterpart=name.removeprefix("mini-"), samples=f"{scores.protocol}.jsonl"))
    record = sample_record(results=tuple(results), fingerprint=fingerprint, **changes)
    if uncompressed:
        record = _uncompressed(record)
    record.save(folder / FILE_NAME)
    return folder


def _owner(protocol: str, fingerprint: str) -> dict[str, Any]:
    return {"protocol": protocol, "model": fingerprint, "limit": None}


def _scores(name: str, rows: list[Row]) -> Scores:
    text = "loss" in rows[0]
    per = "words" if "words" in rows[0] else "tokens"
    found = (
        perplexity([row["loss"] for row in rows], [row[per] for row in rows], [row["id"] for row in rows])
        if text
        else mean([float(row["correct"]) for row in rows])
    )
    metric = {"words": "word_perplexity", "tokens": "perplexity"}[per] if text else "acc"
    return Scores(
        name, f"{name}@0123abcd", metric, not text, found.value, found.n, found.k, found.standard_error, samples=rows
    )


def _uncompressed(record: Record) -> Record:
    kept = BitAllocation(np.full((2, 4), 16), attention=16, shared=16)
    bits = dataclasses.replace(
        record.bits, asked=None, asked_as="", expert=16.0, label=16.0, whole_model=16.0, stored=16.0
    )
    return dataclasses.replace(record, method="none", allocation=kept, bits=bits, calibration=None, baseline="")
