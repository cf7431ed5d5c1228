"""The three ways in which mcbench refuses to go on, each with its own exit code at the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class BadInput(ValueError):
    """What was asked for cannot be done as asked: the message names the value and the way out (exit code 2)."""


class UnknownName(LookupError):
    """A method, task, model or field of that name does not exist: the message suggests the nearest (exit code 2)."""


class CheckFailed(RuntimeError):
    """A check of ours did not hold: coverage, equality of two paths, a stale table (exit code 1)."""


class NotInstalled(BadInput):
    """An optional package is absent: the message names the extra that brings it (exit code 2)."""


def require_all(checks: Iterable[Callable[[], object]]) -> None:
    """Makes every check; one BadInput says all that they refuse, each once."""
    refused: list[str] = []
    for check in checks:
        try:
            check()
        except BadInput as error:
            refused += str(error).split("\n")
    if refused:
        raise BadInput("\n".join(dict.fromkeys(refused)))
