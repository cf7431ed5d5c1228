"""A command line whose errors name what was probably meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from mcbench.bounds import SHOWN
from mcbench.registry import nearest, suggest

_LONG = re.compile(rf"'[^']{{{2 * SHOWN},}}'")


class Parser(argparse.ArgumentParser):
    """As argparse has it, but an option or command that does not exist is answered with the nearest that does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what is left over here, where the options of this command are known."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self._refuse(rest)
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2: how the command is called, then what is wrong."""
        super().error(_LONG.sub(lambda found: f"{found.group()[:SHOWN]}...'", message))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:  # argparse takes it away, and gives a list of nothing
            raise argparse.ArgumentError(action, "expected one argument")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.metavar or action.dest
            raise argparse.ArgumentError(None, f"there is no {name} {value!r}; {suggest(str(value), action.choices)}")

    def _refuse(self, rest: Sequence[str]) -> NoReturn:
        option = next((word for word in rest if word.startswith("-")), None)
        if option is None:
            self.error(f"{rest[0]!r} is one argument too many")
        name = option.partition("=")[0]
        self.error(f"there is no option {name!r} here; {self._meant(name)}")

    def _meant(self, name: str) -> str:
        """The nearest option of this command, or of another one, or where they are listed."""
        own = [flag for flag in self._option_string_actions if flag.startswith("--")]
        if near := nearest(name, own):
            return f"did you mean {near!r}?"
        for command, parser in self.commands().items():
            if near := nearest(name, [f for f in parser._option_string_actions if f.startswith("--")]):
                return f"did you mean '{self.prog} {command} {near}'?"
        return f"`{self.prog} --help` lists them"

    def commands(self) -> dict[str, Parser]:
        """The commands of this one by name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def require_command(self, arguments: Sequence[str]) -> None:
        """Ends the program where there is no command, with the commands, or an option in its place."""
        if not arguments:
            self.error(f"name a command: {', '.join(self.commands())}; `{self.prog} COMMAND --help` says more")
        first = arguments[0]
        if first.startswith("-") and first.partition("=")[0] not in self._option_string_actions:
            self._refuse([first])
