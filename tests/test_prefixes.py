"""Every sequence is spelled by its path, and a plan never computes more tokens than the sequences have."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from mcbench.prefixes import Node, Sharing, plan

SHARINGS: tuple[Sharing, ...] = ("none", "one level", "trie")


def walk(nodes: Sequence[Node], before: tuple[int, ...] = ()) -> Iterator[tuple[Node, tuple[int, ...]]]:
    """Every node with all tokens up to its end."""
    for node in nodes:
        assert node.start == len(before) and (node.tokens or not before)
        yield node, before + node.tokens
        yield from walk(node.children, before + node.tokens)


def tokens(nodes: Sequence[Node]) -> int:
    return sum(len(node.tokens) for node, _ in walk(nodes))


def depth(nodes: Sequence[Node]) -> int:
    return 1 + max(depth(node.children) for node in nodes) if nodes else 0


def exam(subjects: int = 3, questions: int = 5, seed: int = 0) -> list[tuple[int, ...]]:
    """Examples of a subject, a question, a choice of two tokens of which the first is shared or not."""
    rng = random.Random(seed)

    def some(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(50) for _ in range(n))

    found = []
    for _ in range(subjects):
        stem = some(200)
        for _ in range(questions):
            question = stem + some(rng.randint(10, 40))
            found += [question + some(rng.randint(0, 6)) for _ in range(4)]
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("seed", range(20))
def test_the_path_to_a_sequences_end_spells_it(sharing: Sharing, seed: int) -> None:
    rng = random.Random(seed)
    some = [tuple(rng.randrange(3) for _ in range(rng.randint(0, 12))) for _ in range(40)] + exam(seed=seed)
    nodes = plan(some, sharing)
    ends = {at: path for node, path in walk(nodes) for at in node.members if path == some[at]}
    assert sorted(ends) == list(range(len(some)))
    for node, path in walk(nodes):
        assert all(some[at][: node.end] == path for at in node.members)
        assert set(node.members) >= {at for child in node.children for at in child.members}
    assert tokens(nodes) <= sum(map(len, set(some)))
    assert depth(nodes) <= {"none": 1, "one level": 2, "trie": 99}[sharing]


def test_examples_and_questions_are_computed_once() -> None:
    some = exam()
    trie, one, none = (tokens(plan(some, sharing)) for sharing in ("trie", "one level", "none"))
    shortest = len({path[:at] for path in some for at in range(1, len(path) + 1)})  # one node for every token
    assert shortest <= trie <= 1.05 * shortest
    assert trie < one < none


def test_a_beginning_that_saves_little_is_not_shared() -> None:
    questions = [(1, 2, *(at * 50 + n for n in range(40))) for at in range(3, 30)]
    assert plan(questions) == plan(questions, "none")


def test_the_plan_does_not_depend_on_the_order_of_the_sequences() -> None:
    some = exam()
    turned = plan(some[::-1])
    assert [path for _, path in walk(turned)] == [path for _, path in walk(plan(some))]


def test_no_sequence_no_plan() -> None:
    assert plan([]) == []
