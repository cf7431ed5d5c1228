"""What went otherwise than asked, gathered: a remark that holds for many things is one line that says for how many."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mcbench.errors import BadInput

MOST_KINDS = 24  # of remarks about things of one sort that are told one by one
MOST_WORDINGS = 4  # of one kind, which differ in numbers alone: more of them become one with ranges
LONGEST = 300  # characters of a remark
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_PLACE = re.compile(r"expert (\d+) of layer (\d+) (.*)", re.DOTALL)


def require_remarks(remarks: object, whose: str) -> tuple[str, ...]:
    """The remarks that `whose` made, as a tuple; BadInput where they are anything but a tuple or list of texts."""
    if not isinstance(remarks, tuple | list) or not all(isinstance(remark, str) for remark in remarks):
        raise BadInput(f"the notes of {whose} must be a tuple of texts, not {remarks!r:.80}")
    return tuple(remarks)


def gathered(remarks: Sequence[Iterable[str]], things: str) -> tuple[str, ...]:
    """The remarks about each of some `things`, such as matrices, as lines that say about how many of all they are.

    Remarks that differ in their numbers alone are one line, with the least and the greatest of each number, where they
    are more than a few; what is rarest gives way where there are too many kinds, and is counted.
    """
    kinds: dict[str, dict[str, set[int]]] = {}  # with numbers left out -> with numbers -> the places of the things
    for at, own in enumerate(remarks):
        for remark in map(_plain, own):
            if remark:
                kinds.setdefault(_NUMBER.sub("#", remark), {}).setdefault(remark, set()).add(at)
    lines: list[tuple[str, set[int]]] = []
    for wordings in kinds.values():
        if len(wordings) <= MOST_WORDINGS:
            lines += wordings.items()
        else:
            lines.append((_with_ranges(list(wordings)), set().union(*wordings.values())))
    lines.sort(key=lambda line: -len(line[1]))  # stable: those of one number in the order in which they were made
    shown, rest = (lines, []) if len(lines) <= MOST_KINDS else (lines[: MOST_KINDS - 1], lines[MOST_KINDS - 1 :])
    told = [f"{text}: {len(places)} of {len(remarks)} {things}" for text, places in shown]
    if rest:
        places = set().union(*(places for _, places in rest))
        told.append(f"{len(rest)} other remarks: {len(places)} of {len(remarks)} {things}")
    return tuple(told)


def gathered_experts(lines: Iterable[str], layers: int, experts: int) -> tuple[str, ...]:
    """The same for lines that open with "expert 3 of layer 1"; a line that does not is left as it is."""
    each: list[list[str]] = [[] for _ in range(layers * experts)]
    others: list[str] = []
    for line in lines:
        found = _PLACE.fullmatch(line)
        if found and int(found[2]) < layers and int(found[1]) < experts:
            each[int(found[2]) * experts + int(found[1])].append(found[3])
        else:
            others.append(_plain(line))
    return (*gathered(each, "experts"), *dict.fromkeys(filter(None, others)))


def _plain(remark: str) -> str:
    """On one line, without what a terminal would act upon, shortened where it is long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in remark).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _with_ranges(wordings: Sequence[str]) -> str:
    """One text for several that differ in numbers alone."""
    numbers = zip(*(_NUMBER.findall(wording) for wording in wordings), strict=True)
    ranges = iter([(min(column, key=float), max(column, key=float)) for column in numbers])

    def ranged(_: re.Match[str]) -> str:
        least, most = next(ranges)
        return least if float(least) == float(most) else f"{least} to {most}"

    return _NUMBER.sub(ranged, wordings[0])
