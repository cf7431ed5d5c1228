"""What two records must share to be compared: what was asked of which weights, never how fast it was computed.

The weights, the tokenizer, the precision of computing, the context, the calibration tokens, the precision of all that
is not a routed expert, and how each task is asked decide it. Drafts, shared prefixes, batch sizes, implementations,
threads, machines and versions do not. What an older record does not say is taken to agree where the weights do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcbench.record import Record


@dataclass(frozen=True)
class Subject:
    """Which model was asked, before compression, and with what: None or empty where a record does not say.

    weights: digest of weights and configuration; tokenizer: of what it makes of texts. window: tokens of context.
    """

    weights: str
    tokenizer: str
    dtype: str
    window: int | None

    @classmethod
    def of(cls, record: Record) -> Subject:
        """That of a record."""
        dtype, window = (record.evaluation.get(name) for name in ("dtype", "window"))
        return cls(
            record.model.digest,
            record.model.tokenizer,
            dtype if isinstance(dtype, str) and dtype else record.environment.dtype,
            window if type(window) is int else None,
        )

    def unlike(self, other: Subject) -> list[str]:
        """In what the two differ, in words."""
        if self.weights != other.weights:
            return ["they compressed different weights"]
        found = []
        if self.tokenizer and other.tokenizer and self.tokenizer != other.tokenizer:
            found.append("they read texts with different tokenizers")
        if self.dtype and other.dtype and self.dtype != other.dtype:
            found.append(f"they were computed in different precisions, {self.dtype} and {other.dtype}")
        if self.window is not None and other.window is not None and self.window != other.window:
            found.append(f"they had different contexts, of {self.window} and {other.window} tokens")
        return found


def unlike(one: Record, other: Record, *, seeds: bool = False) -> list[str]:
    """Why two records may not be compared, each reason in words; none where they may.

    seeds: whether records compare that were calibrated on different draws from one text, as different seeds make them.
    """
    calibrated = {digest for record in (one, other) if (digest := calibration_of(record))}
    precision = {
        (record.allocation.attention, record.allocation.shared, record.allocation.router)
        for record in (one, other)
        if not uncompressed(record)
    }
    protocols = {result.task: result.protocol for result in one.results}
    asked = [r.task for r in other.results if protocols.get(r.task, r.protocol) != r.protocol]
    reasons = {
        "they were calibrated on different tokens": len(calibrated) > 1 and not (seeds and redrawn(one, other)),
        "they keep attention, shared experts or router at different precisions": len(precision) > 1,
        f"they were asked in different ways in {', '.join(asked)}": bool(asked),
    }
    return [*Subject.of(one).unlike(Subject.of(other)), *(reason for reason, holds in reasons.items() if holds)]


def condition(record: Record) -> object:
    """All that `unlike` looks at where seeds do not count: records of one condition are like the same records."""
    kept = record.allocation
    precision = None if uncompressed(record) else (kept.attention, kept.shared, kept.router)
    asked = tuple(sorted({result.task: result.protocol for result in record.results}.items()))
    return Subject.of(record), calibration_of(record), precision, asked


def redrawn(one: Record, other: Record) -> bool:
    """Whether two records were calibrated on as many tokens of one text, drawn with different seeds."""
    drawn, again = one.calibration, other.calibration
    if drawn is None or again is None or drawn.seed == again.seed or drawn.digest == again.digest:
        return False
    return (drawn.source, drawn.samples, drawn.length) == (again.source, again.samples, again.length)


def uncompressed(record: Record) -> bool:
    """Whether it is about the model as it was, under its own router."""
    return record.bits.expert == record.bits.label == 16 and record.routing is None


def calibration_of(record: Record) -> str:
    """The digest of the tokens that the method learnt from, be it how to compress or which experts to run."""
    if record.calibration is not None:
        return record.calibration.digest
    learnt = record.routing.provenance if record.routing is not None and record.routing.tables else {}
    return str(learnt.get("data", ""))


def newest(records: list[Record], kind: Callable[[Record], object]) -> list[Record]:
    """Of records of one kind and one subject the newest; one that names no tokenizer gives way to a newer that does."""
    kinds: dict[object, dict[Subject, Record]] = {}
    for record in sorted(records, key=lambda r: (r.created, r.digest)):
        known = kinds.setdefault(kind(record), {})
        subject = Subject.of(record)
        for older in [s for s in known if not (s.tokenizer and subject.tokenizer) and not s.unlike(subject)]:
            del known[older]
        known.pop(subject, None)
        known[subject] = record
    return [record for known in kinds.values() for record in known.values()]
