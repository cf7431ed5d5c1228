"""Reads a method string such as `pmq(beta=1)+hqq` and settles who decides what."""

from __future__ import annotations

import ast
import dataclasses
import importlib.resources
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from mcbench.bounds import alternatives, bounds_in, hints_of, require_value, shown
from mcbench.declarations import require_answers, require_declarations
from mcbench.errors import BadInput, UnknownName
from mcbench.method import DECISIONS, Method, decisions, declared
from mcbench.registry import Registry, looks_like_path, suggest

LONGEST = 1000  # characters of a method string
T = TypeVar("T")

METHODS: Registry[Method] = Registry("method", "mcbench.methods", "mcbench.method:Method")


@dataclass(frozen=True)
class Part:
    """One method of a method string, under the name by which it was asked for."""

    name: str
    method: Method

    def __str__(self) -> str:
        changed = ", ".join(f"{k}={_written(v)}" for k, v in self.settings(changed=True).items())
        return f"{self.name}({changed})" if changed else self.name

    def settings(self, *, changed: bool = False) -> dict[str, Any]:
        """The hyper-parameters, all of them or only those that differ from their defaults."""
        return {
            f.name: getattr(self.method, f.name)
            for f in dataclasses.fields(self.method)
            if not changed or getattr(self.method, f.name) != _default(f)
        }


@dataclass(frozen=True)
class Composition:
    """The methods that together compress a model: at most one of them owns each decision."""

    asked: str
    parts: tuple[Part, ...]

    def owner(self, decision: str) -> Part:
        """The part that takes `decision`; a default from `defaults.json` was added where there is one."""
        return next(part for part in self.parts if decision in decisions(part.method))

    @property
    def compresses(self) -> bool:
        """Whether weights are changed at all; what leaves them alone has no quantiser and takes no budget."""
        return all(part.method.compresses for part in self.parts)

    @property
    def calibrates(self) -> bool:
        """Whether calibration text is needed: to change weights, or to learn when experts run."""
        return self.compresses or self.policy is not None

    @property
    def policy(self) -> Part | None:
        """The part that decides at run time which of the chosen experts run; None leaves it to the router."""
        return next((part for part in self.parts if "route" in decisions(part.method)), None)

    @property
    def allocator(self) -> Method:
        return self.owner("allocate").method

    @property
    def quantizer(self) -> Method:
        return self.owner("quantize").method

    @property
    def layerwise(self) -> bool:
        """Whether each layer is quantised on what the layers before it, already quantised, give it."""
        return bool(declared(self.quantizer, "inputs_field") == "quantized")

    def __str__(self) -> str:
        """The method string with every default part and every changed hyper-parameter written out."""
        return "+".join(str(part) for part in self.parts)


def compose(text: str, *, seed: int = 0, registered: bool = False) -> Composition:
    """Parses `text`, resolves aliases, fills in the default parts and the fields that methods declare as their seeds.

    registered: for text that was read from a file, in which a name is looked up and never taken for a path.

    Raises UnknownName for a method or hyper-parameter that does not exist and BadInput for a value of the wrong type,
    a method that declares what cannot be (`mcbench.declarations`), or two parts that own the same decision.
    """
    parts = [_part(piece, seed, registered) for piece in _pieces(text)]
    owners = _owners(parts)
    inert = [part.name for part in parts if not part.method.compresses]
    if inert and any(part.method.compresses and decisions(part.method) != ("route",) for part in parts):
        raise BadInput(f"{inert[0]!r} leaves the weights as they are, so only a routing policy goes with it")
    for decision, default in defaults()["parts"].items():
        if decision not in owners and not inert:
            parts.append(_part(default, seed))
    return Composition(text, tuple(sorted(parts, key=lambda p: DECISIONS.index(decisions(p.method)[0]))))


def method_strings(text: str) -> tuple[str, ...]:
    """The method strings of a list by commas; those inside brackets belong to hyper-parameters."""
    pieces = tuple(piece.strip() for piece in split(text, ","))
    if not all(pieces):
        raise BadInput(f"the method list {text!r} has an empty name")
    return tuple(dict.fromkeys(pieces))


@cache
def defaults() -> Mapping[str, Any]:
    """`defaults.json`: default parts, aliases and task suites, the one place where the engine names contributions."""
    text = importlib.resources.files("mcbench").joinpath("defaults.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _owners(parts: list[Part]) -> dict[str, Part]:
    owners: dict[str, Part] = {}
    for part in parts:
        taken = decisions(part.method)
        if not taken:
            raise BadInput(f"{part.name!r} takes none of the decisions {', '.join(DECISIONS)}")
        for decision in taken:
            if decision in owners:
                raise BadInput(f"both {owners[decision].name!r} and {part.name!r} {decision}; choose one of them")
            owners[decision] = part
    return owners


def _pieces(text: str) -> list[str]:
    """The parts of a method string, aliases written out."""
    if len(text) > LONGEST:
        raise BadInput(f"a method string has at most {LONGEST} characters, not {len(text)}")
    pieces = [piece.strip() for piece in split(text, "+")]
    if not all(pieces):
        raise BadInput(f"the method string {text!r} has an empty part")
    aliases: Mapping[str, str] = defaults()["aliases"]
    return [inner for piece in pieces for inner in (split(aliases[piece], "+") if piece in aliases else [piece])]


def _part(piece: str, seed: int, registered: bool = False) -> Part:
    name, _, _ = piece.partition("(")
    known = METHODS.names()
    if (registered or not looks_like_path(name.strip())) and name.strip() not in known:
        raise UnknownName(f"no method is called {name.strip()!r}; {suggest(name, [*known, *defaults()['aliases']])}")
    name, settings = named(piece)
    kind = METHODS.get(name)
    require_declarations(kind, name)
    method = make(kind, name, {kind.seed_field: seed, **settings} if kind.seed_field else settings)
    require_answers(method, name)
    return Part(name, method)


def named(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings in `name(field=value, ...)`; BadInput where it is written in another way."""
    name, bracket, inside = text.partition("(")
    name = name.strip()
    if bracket and not inside.endswith(")"):
        raise BadInput(f"{text!r} opens a bracket that it does not close")
    settings: dict[str, Any] = {}
    for setting in split(inside[:-1], ",") if bracket and inside[:-1].strip() else []:
        key, equals, value = (s.strip() for s in setting.partition("="))
        if not equals:
            raise BadInput(f"{name}: write {setting.strip()!r} as field=value")
        if key in settings:
            raise BadInput(f"{name}: {key} is set twice")
        settings[key] = _value(value)
    return name, settings


def make(kind: type[T], name: str, settings: Mapping[str, Any]) -> T:
    """A contribution with some of its fields set.

    Raises UnknownName for a field that it does not have, BadInput for a value that is not what the field wants.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = hints_of(kind)
    for key in settings:
        if key not in fields:
            raise UnknownName(f"{name} has no hyper-parameter {key!r}; {suggest(key, fields)}")
    values = {key: _typed(value, hints[key], f"{name}: {key}") for key, value in settings.items()}
    for key, value in values.items():
        require_value(value, bounds_in(hints[key]), f"{name}: {key}")
    try:
        return kind(**values)
    except BadInput:
        raise
    except Exception as error:  # whatever a contribution makes of its settings
        raise BadInput(f"{name}: {type(error).__name__}: {error}") from error


def split(text: str, separator: str) -> list[str]:
    """Splits at separators that stand outside every bracket."""
    pieces, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            break
        if character == separator and depth == 0:
            pieces.append(text[start:position])
            start = position + 1
    if depth != 0:
        raise BadInput(f"the brackets in {text!r} do not match")
    return [*pieces, text[start:]]


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotation `hint` wants it, whole numbers accepted as floats."""
    options = alternatives(hint)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            if value in typing.get_args(option):
                return value
        elif option is float and isinstance(value, int) and not isinstance(value, bool):
            return _as_float(value)
        elif origin is type(None) and value is None:
            return None
        elif origin in (tuple, list) and isinstance(value, tuple | list):
            return origin(_elements(value, typing.get_args(option), where))
        elif isinstance(value, bool) and option is not bool:
            continue
        elif isinstance(origin, type) and isinstance(value, origin):
            return value
    wanted = " or ".join(_described(option) for option in options)
    raise BadInput(f"{where} must be {wanted}, not {shown(value)}")


def _elements(values: Sequence[Any], wanted: Sequence[Any], where: str) -> list[Any]:
    """The values of a tuple or list, each as `tuple[X, ...]` or `list[X]` wants it; of another kind as they are."""
    if not wanted or (len(wanted) == 2 and wanted[1] is not Ellipsis) or len(wanted) > 2:
        return list(values)
    return [_typed(value, wanted[0], f"each value of {where}") for value in values]


def _as_float(value: int) -> float:
    """Infinite for what no float holds, which no bounds allow."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _described(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(repr(v) for v in typing.get_args(option))
    return getattr(option, "__name__", str(option))


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
