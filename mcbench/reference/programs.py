"""Small Python functions: a description in words, the body that does it, and tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from mcbench.reference.world import Fact, Split, split_of


class Program(NamedTuple):
    """A function's head with its description, its body, and assertions that call it."""

    prompt: str
    body: str
    tests: str
    fact: Fact


class Operation(NamedTuple):
    """One step: its name, its words and its line of code, which may use the constant k."""

    name: str
    words: str
    code: str
    run: Callable[..., object]
    low: int = 2
    high: int = 49


NUMBER_STEPS = (
    Operation("add", "add {k}", "{v} = {v} + {k}", lambda v, k: v + k),
    Operation("subtract", "take away {k}", "{v} = {v} - {k}", lambda v, k: v - k),
    Operation("multiply", "multiply by {k}", "{v} = {v} * {k}", lambda v, k: v * k, 3, 9),
    Operation("double", "double it", "{v} = {v} * 2", lambda v, k: v * 2),
    Operation("square", "square it", "{v} = {v} * {v}", lambda v, k: v * v),
    Operation("negate", "change the sign", "{v} = -{v}", lambda v, k: -v),
    Operation("halve", "halve it", "{v} = {v} // 2", lambda v, k: v // 2),
    Operation("rest", "keep the rest by {k}", "{v} = {v} % {k}", lambda v, k: v % k, 3, 49),
    Operation("floor", "make it at least {k}", "{v} = max({v}, {k})", lambda v, k: max(v, k)),
    Operation("ceiling", "make it at most {k}", "{v} = min({v}, {k})", lambda v, k: min(v, k)),
    Operation("add-twice", "add {k} twice", "{v} = {v} + {k2}", lambda v, k: v + 2 * k),
    Operation("subtract-twice", "take away {k} twice", "{v} = {v} - {k2}", lambda v, k: v - 2 * k),
    Operation(
        "odd", "if odd add {k}", "if {v} % 2 == 1:\n        {v} = {v} + {k}", lambda v, k: v + k if v % 2 == 1 else v
    ),
)
LIST_STEPS = (
    Operation(
        "even", "keep the even ones", "{v} = [i for i in {v} if i % 2 == 0]", lambda v, k: [i for i in v if i % 2 == 0]
    ),
    Operation(
        "above", "keep those above {k}", "{v} = [i for i in {v} if i > {k}]", lambda v, k: [i for i in v if i > k]
    ),
    Operation(
        "below", "keep those below {k}", "{v} = [i for i in {v} if i < {k}]", lambda v, k: [i for i in v if i < k]
    ),
    Operation("add-each", "add {k} to each", "{v} = [i + {k} for i in {v}]", lambda v, k: [i + k for i in v]),
    Operation(
        "times-each", "multiply each by {k}", "{v} = [i * {k} for i in {v}]", lambda v, k: [i * k for i in v], 3, 9
    ),
    Operation("drop-first", "drop the first", "{v} = {v}[1:]", lambda v, k: v[1:]),
    Operation("drop-last", "drop the last", "{v} = {v}[:-1]", lambda v, k: v[:-1]),
    Operation("reverse", "turn it around", "{v} = {v}[::-1]", lambda v, k: v[::-1]),
    Operation("sort", "sort it", "{v} = sorted({v})", lambda v, k: sorted(v)),
)
LIST_ENDS = (
    Operation("list", "give the list", "return {v}", lambda v, k: v),
    Operation("sum", "give the sum", "return sum({v})", lambda v, k: sum(v)),
    Operation("count", "give the count", "return len({v})", lambda v, k: len(v)),
)
NUMBER_END = Operation("number", "give it", "return {v}", lambda v, k: v)


def program(rng: random.Random, split: Split) -> Program:
    """A random function whose sequence of steps belongs to the split."""
    while True:
        if rng.random() < 0.6:
            steps = [*rng.sample(NUMBER_STEPS, rng.randint(2, 4)), NUMBER_END]
            variable, inputs = rng.choice(("x", "n", "a")), [str(rng.randint(0, 60)) for _ in range(4)]
        else:
            steps = [*rng.sample(LIST_STEPS, 2), rng.choice(LIST_ENDS)]
            variable = rng.choice(("v", "xs", "a"))
            inputs = [str([rng.randint(0, 60) for _ in range(rng.randint(4, 8))]) for _ in range(4)]
        fact = ("humaneval", *(step.name for step in steps))
        if split_of(fact) == split:
            return _written(rng, steps, variable, inputs, fact)


def _written(rng: random.Random, steps: list[Operation], variable: str, inputs: list[str], fact: Fact) -> Program:
    constants = [rng.randint(step.low, step.high) for step in steps]
    said = [step.words.format(k=k) for step, k in zip(steps, constants, strict=True)]
    if len(steps) > 3 or rng.random() < 0.5:
        described = "first " + ", then ".join(said)
    else:
        described = f"{said[-1]} after this: " + ", but before that ".join(reversed(said[:-1]))
    prompt = f'def f({variable}):\n    """{described}"""\n'
    lines = ["    " + step.code.format(v=variable, k=k, k2=2 * k) for step, k in zip(steps, constants, strict=True)]
    tests = []
    for value in inputs:
        result: object = eval(value)  # noqa: S307 - our own literal
        for step, k in zip(steps, constants, strict=True):
            result = step.run(result, k)
        tests.append(f"assert f({value}) == {result!r}")
    return Program(prompt, "\n".join(lines) + "\n", "\n".join(tests) + "\n", fact)
