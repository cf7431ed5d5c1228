"""Every number that a user can type has bounds, and what is beyond them is refused before anything is computed."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from mcbench.bounds import SETTINGS, Between, alternatives, declared, hints_of, require_bounds, shown
from mcbench.catalogue import TASKS, describe, select_tasks
from mcbench.cli import _parser, main
from mcbench.composition import METHODS, compose
from mcbench.errors import BadInput
from mcbench.method import Method

SECONDS = 30.0  # for what takes milliseconds, on a machine that does much else
BEYOND = ("nan", "inf", "-inf", "1e400", "-1e400", f"{10**20}", f"-{10**20}", "9" * 300, "9" * 5000)


def numeric(kind: type) -> Iterator[str]:
    """The fields of a contribution that hold numbers."""
    hints = hints_of(kind)
    for field in dataclasses.fields(kind):
        types = {
            each if isinstance(each, type) else getattr(each, "__origin__", None)
            for each in alternatives(hints[field.name])
        }
        if types & {int, float, tuple}:
            yield field.name


METHOD_FIELDS = [(name, field) for name in METHODS.names() for field in numeric(METHODS.get(name))]
TASK_FIELDS = [(name, field) for name in TASKS.names() for field in numeric(TASKS.get(name))]


@pytest.mark.parametrize(("name", "field"), [*METHOD_FIELDS, *TASK_FIELDS])
def test_every_number_of_a_contribution_declares_bounds_that_its_default_keeps(name: str, field: str) -> None:
    kind: Any = METHODS.get(name) if (name, field) in METHOD_FIELDS else TASKS.get(name)
    bounds = declared(kind)[field]
    assert bounds is not None
    assert math.isfinite(bounds.low) and math.isfinite(bounds.high)
    assert f"{field}: " in describe(name) and str(bounds) in describe(name)
    kind()  # the defaults


@pytest.mark.parametrize(("name", "field"), [*METHOD_FIELDS, *TASK_FIELDS])
def test_no_method_and_no_task_takes_a_number_beyond_its_bounds(name: str, field: str) -> None:
    for value in (*BEYOND, "(1e400,)", "(-1, -1)", f"({10**20},)", "True", "[[]]"):
        started = time.monotonic()
        with pytest.raises(BadInput) as caught:
            if (name, field) not in METHOD_FIELDS:
                select_tasks(f"{name}({field}={value})")
            elif len(value) < 1000:  # a method string is no longer
                compose(f"{name}({field}={value})")
            else:
                compose(f"{name}({field}={value[:900]})")
        assert field in str(caught.value) and len(str(caught.value)) < 400, value
        assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(("name", "field"), [*METHOD_FIELDS, *TASK_FIELDS])
def test_just_beyond_a_bound_is_refused_with_value_and_bounds(name: str, field: str) -> None:
    kind: Any = METHODS.get(name) if (name, field) in METHOD_FIELDS else TASKS.get(name)
    bounds = declared(kind)[field]
    assert bounds is not None
    listed = "tuple" in str(hints_of(kind)[field])
    for value in (bounds.low - 1, bounds.high + 1):
        with pytest.raises(BadInput) as caught:
            kind(**{field: (value,) if listed else value})
        assert f"must lie {bounds}, not {value}" in str(caught.value) and field in str(caught.value)


def test_texts_of_needles_are_bounded_together() -> None:
    with pytest.raises(BadInput, match=r"would write 71,884,800,000 characters .* ask for fewer lengths"):
        select_tasks("niah-multikey-3(depths=900, repeats=1000)")
    assert select_tasks("niah-multikey-3(depths=100, repeats=10)")


def test_what_a_contribution_does_not_declare_is_bounded_all_the_same() -> None:
    @dataclass(frozen=True)
    class Theirs(Method):
        """Forgets the check of the base class."""

        number: float = 1.0
        text: str = ""
        many: tuple[int, ...] = ()
        few: Annotated[tuple[int, ...], Between(0, 9, most=2)] = ()

        def __post_init__(self) -> None:
            pass

    for wrong in ({"number": 1e10}, {"number": math.nan}, {"text": "x" * 5000}, {"many": (0,) * 20_000}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            require_bounds(Theirs(**wrong), "theirs")
    with pytest.raises(BadInput, match="few has at most 2 values, not 3"):
        require_bounds(Theirs(few=(1, 2, 3)), "theirs")
    require_bounds(Theirs(number=-5.0, text="fine", few=(1, 2)), "theirs")


def test_a_refused_value_is_shown_short() -> None:
    assert shown(3) == "3" and shown("a\nb") == "'a\\nb'"
    assert shown(10**5000) == "1e5000 or so"
    assert len(shown("x" * 10_000)) < 100


# -- the command line

NEEDED = {  # what a command has to be given beside a flag
    "compare": ["absent", "absent"],
    "figure": ["tradeoff"],
    "list": ["methods"],
}
WITH = {"--cpus": ["--engine", "ray"], "--gpus": ["--engine", "ray"], "--memory": ["--engine", "ray"]}
WITH |= {"--margin": ["--gate"], "--perplexity-margin": ["--gate"]}
LISTS = {"--bits", "--expert-bits", "--seeds", "--widths", "--grid"}


def flags() -> Iterator[tuple[str, str]]:
    """Every flag of every command that takes numbers."""
    (commands,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, parser in commands.choices.items():
        for action in parser._actions:
            for flag in action.option_strings:
                if action.type in (int, float) or flag in LISTS:
                    yield name, flag


def test_the_flags_are_found() -> None:
    assert {("run", "--seed"), ("sweep", "--memory"), ("compare", "--confidence"), ("profile", "--grid")} <= set(
        flags()
    )


REFUSALS = re.compile(
    "must lie between|lies between|invalid (int|float) value|must be (numbers|whole)|no range|no cell|"
    "whole numbers|widths must be"
)


@pytest.mark.parametrize(("command", "flag"), list(flags()))
def test_no_flag_takes_a_number_beyond_its_bounds(
    command: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    budget = ["--bits", "2"] if command in ("run", "profile", "sweep") and not flag.endswith("bits") else []
    methods = {"sweep": ["--methods", "pmq"], "profile": ["--method", "pmq"]}.get(command, [])
    needed = {"reproduce": ["latency" if flag == "--grid" else "table7"], **NEEDED}.get(command, [])
    known = [command, *needed, *methods, *budget, *WITH.get(flag, [])]
    for value in BEYOND:
        started = time.monotonic()
        try:
            code = main([*known, f"{flag}={value}"])
        except SystemExit as stopped:
            code = int(str(stopped.code))
        assert code == 2 and time.monotonic() - started < SECONDS, value
        reason = capsys.readouterr().err.splitlines()[-1]
        assert REFUSALS.search(reason) and len(reason) < 400, reason
    assert not list(tmp_path.iterdir())


def test_a_setting_is_checked_from_python_as_well(tmp_path: Path) -> None:
    from mcbench.pipeline import run
    from mcbench.sweep import make_grid

    for name in ("bits", "seed", "samples", "length", "limit"):
        wrong: Any
        for wrong in (SETTINGS[name].high + 1, SETTINGS[name].low - 1, math.nan, "2", True):
            with pytest.raises(BadInput, match=f"the {name} must lie between"):
                run("pmq", out=tmp_path, **({"bits": 2.0} | {name: wrong}))
    with pytest.raises(BadInput, match="the limit must lie between"):
        make_grid({"methods": "pmq", "bits": "2", "limit": 10**12})
    with pytest.raises(BadInput, match="the seed must lie between"):
        make_grid({"methods": "pmq", "bits": "2", "seeds": [2**32]})
