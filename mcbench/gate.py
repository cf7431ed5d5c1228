"""The gate of a build: may this run replace that one? Yes, no, or not enough samples to tell.

A non-inferiority test. What is lost may be at most a margin, and the burden of proof lies on either answer: the gate
opens where the loss is shown to be smaller, shuts where it is shown to be larger, and says so where neither is shown.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mcbench.errors import BadInput
from mcbench.uncertainty import Interval
from mcbench.versus import Comparison, Contrast, Unanswered, Versus, bounds_of_mean, counted, shown_difference

Outcome = Literal["passed", "failed", "cannot tell"]


class Bounds(NamedTuple):
    """The least and the most that may have been lost."""

    least: float
    most: float


@dataclass(frozen=True)
class Claim:
    """One loss held to the margin: shares in points, perplexities as a relative rise, both as fractions.

    proven, refuted: whether the loss was shown to lie within the margin, or beyond it. enough: about how many times the
    samples would settle it, where neither is so; None where no number would. share: whether it is of shares.
    """

    what: str
    loss: float
    bounds: Bounds | None
    margin: float
    proven: bool
    refuted: bool
    enough: float | None
    share: bool = True


@dataclass(frozen=True)
class Verdict:
    """The outcome, every claim behind it, and one paragraph that says why."""

    outcome: Outcome
    why: str
    claims: tuple[Claim, ...]

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        claims = [
            {**dataclasses.asdict(claim), "bounds": claim.bounds._asdict() if claim.bounds else None}
            for claim in self.claims
        ]
        return {"outcome": self.outcome, "why": self.why, "claims": claims}


def judge(
    comparison: Comparison,
    *,
    margin: float = 1.0,
    perplexity_margin: float = 1.0,
    confidence: float | None = None,
    each: bool = False,
) -> Verdict:
    """Whether every run is shown to lose less than the margin to the first, at that confidence.

    margin: points (per cent) of the mean over all tasks of shares that have room, or with `each` of every task alone.
    perplexity_margin: by how many per cent each perplexity may rise. confidence: by default that of the comparison.
    Errors: where the true loss is the margin or more, the gate opens with a chance of at most 1 - confidence, however
    many claims there are, for all of them must be proven, and no task left out that the first run answered; where no
    true loss exceeds its margin it shuts with at most that chance too, for which the level is divided by the number of
    claims (Bonferroni).

    Raises BadInput for a margin that is not positive, and where nothing can be judged.
    """
    for name, value in {"margin": margin, "perplexity margin": perplexity_margin}.items():
        if not 0 < value < 100:
            raise BadInput(f"a {name} lies between 0 and 100 per cent, not {value:g}")
    level = comparison.confidence if confidence is None else confidence
    subjects = [subject for other in comparison.others for subject in _subjects(other, each)]
    if not subjects:
        raise BadInput("there is nothing to judge: the runs have no task in common")
    claims = tuple(
        _claim(what, parts, (margin if share else perplexity_margin) / 100, level, len(subjects), share)
        for what, parts, share in subjects
    )
    outcome: Outcome = "cannot tell"
    if any(claim.refuted for claim in claims):
        outcome = "failed"
    elif all(claim.proven for claim in claims) and not comparison.unanswered:
        outcome = "passed"
    why = _why(outcome, claims, level, comparison.reference.name, comparison.unanswered)
    return Verdict(outcome, why, claims)


def _subjects(other: Versus, each: bool) -> Iterator[tuple[str, Sequence[Contrast], bool]]:
    """What is judged about a run: a name, the tasks that count, and whether they are shares."""
    shares = counted(other.contrasts)
    alone = each or not shares  # where no task has room, every one is looked at by itself
    if not alone:
        left = [contrast.task for contrast in other.contrasts if contrast.no_room]
        tasks = f"{len(shares)} tasks" if len(shares) > 1 else shares[0].task
        told = f" (without {', '.join(left)}, which {'has' if len(left) == 1 else 'have'} no room)" if left else ""
        yield f"{other.run.name} over {tasks}{told}", shares, True
    for contrast in other.contrasts:
        if alone or not contrast.higher_is_better:
            yield f"{other.run.name} in {contrast.task}", [contrast], contrast.higher_is_better


def _claim(
    what: str, contrasts: Sequence[Contrast], margin: float, confidence: float, claims: int, share: bool
) -> Claim:
    near = _loss_bounds(contrasts, 1 - confidence, share)
    far = _loss_bounds(contrasts, (1 - confidence) / claims, share)
    loss = _loss(contrasts, share)
    if near is None or far is None:
        return Claim(what, loss, None, margin, False, False, None, share)
    proven, refuted = near.most < margin, far.least > margin
    reach = near.most - loss if loss < margin else loss - far.least
    gap = abs(margin - loss)
    enough = (reach / gap) ** 2 if gap and not proven and not refuted else None
    return Claim(what, loss, Bounds(near.least, near.most), margin, proven, refuted, enough, share)


def _loss(contrasts: Sequence[Contrast], share: bool) -> float:
    return -math.fsum(c.difference for c in contrasts) / len(contrasts) if share else contrasts[0].difference


def _loss_bounds(contrasts: Sequence[Contrast], error: float, share: bool) -> Bounds | None:
    """The least and the most that was lost, each wrong with a chance of at most `error`."""
    if share:
        found = bounds_of_mean(contrasts, error)
        return found and Bounds(-found.high, -found.low)
    interval: Interval | None = contrasts[0].evidence.bounds(error)
    return interval and Bounds(*(shown_difference(end, share) for end in interval))


def _why(
    outcome: Outcome, claims: Sequence[Claim], confidence: float, reference: str, unanswered: Sequence[Unanswered]
) -> str:
    told = {
        "passed": [c for c in claims if c.proven],
        "failed": [c for c in claims if c.refuted],
        "cannot tell": [c for c in claims if not c.proven],
    }[outcome]
    opening = {
        "passed": f"Passed: nothing loses more than its margin to {reference}, at {100 * confidence:g} % confidence.",
        "failed": f"Failed: more than the margin is lost to {reference}, at {100 * confidence:g} % confidence.",
        "cannot tell": f"Cannot tell: the samples are too few to show, at {100 * confidence:g} % confidence, that the "
        f"loss to {reference} stays within the margin or exceeds it.",
    }[outcome]
    sentences = [_sentence(outcome, claim) for claim in told]
    if unanswered:
        if outcome == "cannot tell" and not told:
            opening = "Cannot tell: what was compared stays within its margin, but not everything was."
        sentences.append(
            f"Not answered, though {reference} did: {'; '.join(map(str, unanswered))}. Run these tasks, or name with "
            "--tasks those that count."
        )
    return " ".join([opening, *sentences])


def _sentence(outcome: Outcome, claim: Claim) -> str:
    loss, margin = _worded(claim.loss, claim.share), _amount(claim.margin, claim.share, "g")
    if claim.bounds is None:
        return f"{claim.what}: {loss}, margin {margin}, with too few independent samples for any bound."
    least, most = (_worded(bound, claim.share) for bound in claim.bounds)
    seen = {
        "passed": f"at {'most' if claim.bounds.most >= 0 else 'least'} {most}",
        "failed": f"at least {least}",
        "cannot tell": f"between {least} and {most}",
    }[outcome]
    need = f"; about {claim.enough:.1f} times the samples would tell" if claim.enough else ""
    return f"{claim.what}: {loss}, {seen}, margin {margin}{need}."


def _worded(loss: float, share: bool) -> str:
    """A loss in words: what was lost, or gained."""
    return f"{_amount(abs(loss), share, '.2f')} {'lost' if loss >= 0 else 'gained'}"


def _amount(value: float, share: bool, form: str) -> str:
    """Shares in percentage points, perplexities in per cent."""
    shown = format(round(100 * value, 9), form)
    return f"{shown} {('point' if float(shown) == 1 else 'points') if share else '%'}"
