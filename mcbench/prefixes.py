"""Which token sequences begin alike, and which shared beginnings are worth computing once.

The sequences form a trie over token ids. A node of the plan is a run of tokens computed after its parent's; few-shot
examples, question and choices become three levels without anyone saying where they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

Sharing = Literal["none", "one level", "trie"]
WORTH = 0.1  # a shared beginning must save this share of the tokens below it


class Node(NamedTuple):
    """Tokens that come after those of the parent node; `start` counts the tokens before them.

    `members` are the positions of the sequences that pass through this node or end in it.
    """

    tokens: tuple[int, ...]
    start: int
    members: tuple[int, ...]
    children: tuple[Node, ...]

    @property
    def end(self) -> int:
        """How many tokens a sequence has from its beginning to the end of this node."""
        return self.start + len(self.tokens)


@dataclass
class _Open:
    """A node whose subtree is still growing: it ends after `end` tokens of the sequence `example`."""

    end: int
    example: int
    own: list[int] = field(default_factory=list)  # sequences that end here
    units: list[_Unit] = field(default_factory=list)


class _Unit(NamedTuple):
    """A finished subtree: what will be computed anew after the parent's end, wherever that will be."""

    end: int
    example: int
    own: tuple[int, ...]
    children: tuple[_Unit, ...]
    below: int  # tokens computed after `end`
    leaves: int


def plan(sequences: Sequence[Sequence[int]], sharing: Sharing = "trie") -> list[Node]:
    """The nodes that have no parent; together they cover every sequence, equal ones once.

    "none" gives one node for every distinct sequence; "one level" nodes whose children have none. The plan depends on
    the set of sequences, not on their order.
    """
    keys = [np.asarray(ids, dtype=">u4").tobytes() for ids in sequences]
    owners: dict[bytes, list[int]] = {}
    for at, key in enumerate(keys):
        owners.setdefault(key, []).append(at)
    order = sorted(owners)
    distinct = [tuple(sequences[owners[key][0]]) for key in order]
    if sharing == "none":
        return [Node(ids, 0, tuple(owners[key]), ()) for key, ids in zip(order, distinct, strict=True)]
    stack = [_Open(0, 0)]
    for at, key in enumerate(order):
        common = _common(order[at - 1], key) if at else 0
        _close(stack, common, at, sharing)
        if stack[-1].end == len(distinct[at]):  # the empty sequence
            stack[-1].own += owners[key]
        else:
            stack.append(_Open(len(distinct[at]), at, list(owners[key])))
    _close(stack, 0, 0, sharing)
    (root,) = stack
    units = [*root.units, *([_Unit(0, root.example, tuple(root.own), (), 0, 1)] if root.own else [])]
    return [_node(unit, 0, distinct) for unit in units]


def _common(one: bytes, other: bytes) -> int:
    """How many tokens two sequences have in common at their beginning."""
    n = min(len(one), len(other)) // 4
    differs = np.frombuffer(one, dtype=">u4", count=n) != np.frombuffer(other, dtype=">u4", count=n)
    return int(differs.argmax()) if differs.any() else n


def _close(stack: list[_Open], depth: int, example: int, sharing: Sharing) -> None:
    """Finishes the nodes that end beyond `depth`, where the next sequence parts from the last."""
    while stack[-1].end > depth:
        top = stack.pop()
        parent = max(depth, stack[-1].end)
        if stack[-1].end < parent:
            stack.append(_Open(parent, example))
        stack[-1].units += _decide(top, parent, sharing)


def _decide(node: _Open, parent: int, sharing: Sharing) -> list[_Unit]:
    """The node as one unit, or, where sharing it saves too little, what it consists of."""
    own = [_Unit(node.end, node.example, tuple(node.own), (), 0, 1)] if node.own else []
    if not node.units:
        return own
    apart = [*own, *node.units]
    if sharing == "one level":
        parent, inner = 0, [leaf for unit in apart for leaf in _leaves(unit)]
        otherwise = sum(_saved(unit) for unit in node.units)
    else:
        inner, otherwise = apart, 0
    run = node.end - parent
    saved = (len(inner) - 1) * run
    below = sum(unit.end - node.end + unit.below for unit in inner)
    if saved <= otherwise or saved < WORTH * (len(inner) * run + below):
        return apart
    kept = tuple(unit for unit in inner if unit.end > node.end)
    return [_Unit(node.end, node.example, tuple(node.own), kept, below, sum(unit.leaves for unit in inner))]


def _leaves(unit: _Unit) -> list[_Unit]:
    own = [_Unit(unit.end, unit.example, unit.own, (), 0, 1)] if unit.own else []
    return [*own, *(leaf for child in unit.children for leaf in _leaves(child))]


def _saved(unit: _Unit) -> int:
    """Tokens that a unit of one level saves where no node stands above it."""
    return (unit.leaves - 1) * unit.end if unit.children else 0


def _node(unit: _Unit, start: int, distinct: Sequence[tuple[int, ...]]) -> Node:
    children = tuple(_node(child, unit.end, distinct) for child in unit.children)
    members = (*unit.own, *(at for child in children for at in child.members))
    return Node(distinct[unit.example][start : unit.end], start, members, children)
