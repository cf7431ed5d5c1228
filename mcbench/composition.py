"""Reads a method string such as `pmq(beta=1)+hqq` and settles who decides what."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from mcbench.errors import BadInput, UnknownName
from mcbench.method import DECISIONS, Method, decisions
from mcbench.registry import Registry, looks_like_path, suggest
from mcbench.settings import read_settings, split_call, split_outside

LONGEST = 1000  # characters of a method string
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
        """The part that takes `decision`; a default from `defaults.json` was added for those nobody asked for."""
        return next(part for part in self.parts if decision in decisions(part.method))

    @property
    def compresses(self) -> bool:
        """Whether the model is changed at all; what leaves it alone has no quantiser and wants no calibration."""
        return all(part.method.compresses for part in self.parts)

    @property
    def allocator(self) -> Method:
        return self.owner("allocate").method

    @property
    def quantizer(self) -> Method:
        return self.owner("quantize").method

    def __str__(self) -> str:
        """The method string with every default part and every changed hyper-parameter written out."""
        return "+".join(str(part) for part in self.parts)


def compose(text: str, *, seed: int = 0) -> Composition:
    """Parses `text`, resolves aliases, fills in the default parts and `seed` fields.

    Raises UnknownName for a method or hyper-parameter that does not exist and BadInput for a value of the wrong type
    or two parts that own the same decision.
    """
    parts = [_part(piece, seed) for piece in _pieces(text)]
    owners = _owners(parts)
    inert = [part.name for part in parts if not part.method.compresses]
    if inert and len(parts) > 1:
        raise BadInput(f"{inert[0]!r} leaves the model as it is, so no other method goes with it")
    for decision, default in defaults()["parts"].items():
        if decision not in owners and not inert:
            parts.append(_part(default, seed))
    return Composition(text, tuple(sorted(parts, key=lambda p: DECISIONS.index(decisions(p.method)[0]))))


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
    pieces = [piece.strip() for piece in split_outside(text, "+")]
    if not all(pieces):
        raise BadInput(f"the method string {text!r} has an empty part")
    aliases: Mapping[str, str] = defaults()["aliases"]
    return [
        inner for piece in pieces for inner in (split_outside(aliases[piece], "+") if piece in aliases else [piece])
    ]


def _part(piece: str, seed: int) -> Part:
    name, settings = split_call(piece)
    known = METHODS.names()
    if not looks_like_path(name) and name not in known:
        raise UnknownName(f"no method is called {name!r}; {suggest(name, [*known, *defaults()['aliases']])}")
    kind = METHODS.get(name)
    values = read_settings(kind, name, settings)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if "seed" in fields and fields["seed"].default is None and "seed" not in values:
        values["seed"] = seed
    try:
        return Part(name, kind(**values))
    except BadInput:
        raise
    except Exception as error:  # whatever a contributed method makes of its settings
        raise BadInput(f"{name}: {type(error).__name__}: {error}") from error


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
