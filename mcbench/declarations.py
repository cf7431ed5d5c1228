"""What a contribution declares of itself: attributes of its class, with fixed names, checked before it does anything.

A field is a hyper-parameter and nothing else, whatever it is called. What changes how a method is run is an attribute
of its class (`needs_hessian`), a property (`sees`), or a declaration which of the fields has a part in the run:

    inputs: Literal["original", "quantized"] = "original"
    inputs_field: ClassVar[str] = "inputs"
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mcbench.bounds import alternatives, hints_of, shown
from mcbench.errors import BadInput
from mcbench.method import SIGHTS, Method, decisions
from mcbench.registry import suggest


@dataclass(frozen=True)
class Role:
    """A part that a field may have in a run: of which decision, of which types, and the default that it must have."""

    decision: str  # empty: of any
    types: frozenset[object]
    default: object
    wording: str

    def problem(self, kind: type, field: dataclasses.Field[Any]) -> str:
        """What is wrong with a field for this part, in words; empty where nothing is."""
        found = [
            frozenset(typing.get_args(option)) if typing.get_origin(option) is Literal else option
            for option in alternatives(hints_of(kind)[field.name])
        ]
        if not field.init or frozenset(found) != self.types or field.default != self.default:
            return f"must be of type {self.wording} with default {self.default!r}"
        return ""


_NOTHING = type(None)
ROLES: Mapping[str, Role] = {
    "seed_field": Role("", frozenset({int, _NOTHING}), None, "int or None"),
    "inputs_field": Role(
        "quantize",
        frozenset({frozenset({"original", "quantized"})}),
        "original",
        "Literal['original', 'quantized']",
    ),
    "layers_field": Role("route", frozenset({tuple[int, ...], _NOTHING}), None, "tuple[int, ...] or None"),
    "fitted_field": Role("route", frozenset({str}), "", "str"),
}
_ATTRIBUTES: Mapping[str, type] = {"paper": str, "needs_hessian": bool, "compresses": bool, **dict.fromkeys(ROLES, str)}
_TASK_ATTRIBUTES: Mapping[str, type] = {
    "counterpart": str,
    "metric": str,
    "higher_is_better": bool,
    "version": int,
    "window_field": str,
}


def require_declarations(kind: type[Method], name: str) -> None:
    """Raises BadInput for the first thing that the class of the method `name` declares and that cannot be."""
    _require_plain_fields(kind, Method, name)
    _require_types(kind, _ATTRIBUTES, name)
    for decision in decisions(kind):
        if not callable(getattr(kind, decision)):
            raise BadInput(f"{name}: {decision} must be a function, not {shown(getattr(kind, decision))}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    taken = decisions(kind)
    for declaration, role in ROLES.items():
        if not (chosen := getattr(kind, declaration)):
            continue
        if chosen not in fields:
            raise BadInput(f"{name}: {declaration} names the field {shown(chosen)}; {suggest(chosen, fields)}")
        if role.decision and role.decision not in taken:
            raise BadInput(f"{name}: {declaration} is for a method that decides {role.decision}, and it does not")
        if problem := role.problem(kind, fields[chosen]):
            raise BadInput(f"{name}: the field {chosen!r} that {declaration} names {problem}")
    if kind.inputs_field and not kind.needs_hessian:
        raise BadInput(f"{name}: inputs_field is for a quantiser with needs_hessian, which looks at inputs at all")


def require_answers(method: Method, name: str) -> None:
    """Raises BadInput where the properties of a method that was made are not what the engine can read."""
    tests: Mapping[str, tuple[Callable[[Any], bool], str]] = {
        "needs": (_are_texts, "a tuple of texts"),
        "sees": (lambda seen: _are_texts(seen) and set(seen) <= set(SIGHTS), f"a tuple of some of {SIGHTS}"),
        "causal": (lambda found: isinstance(found, bool), "True or False"),
        "prefix_cacheable": (lambda found: isinstance(found, bool), "True or False"),
    }
    for attribute, (test, wanted) in tests.items():
        try:
            found = getattr(method, attribute)
        except Exception as error:  # whatever a contribution's own property raises
            raise BadInput(f"{name}: {attribute}: {type(error).__name__}: {error}") from error
        if not test(found):
            raise BadInput(f"{name}: {attribute} must be {wanted}, not {shown(found)}")


def require_task_declarations(kind: type, base: type, name: str) -> None:
    """The same for the class of a task, whose base is `base`."""
    _require_plain_fields(kind, base, name)
    _require_types(kind, {n: wanted for n, wanted in _TASK_ATTRIBUTES.items() if hasattr(kind, n)}, name)
    if chosen := getattr(kind, "window_field", ""):
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if chosen not in fields:
            raise BadInput(f"{name}: window_field names the field {shown(chosen)}; {suggest(chosen, fields)}")
        if alternatives(hints_of(kind)[chosen]) != (int,):
            raise BadInput(f"{name}: the field {chosen!r} that window_field names must be of type int")


def _require_plain_fields(kind: type, base: type, name: str) -> None:
    """No field has the name of what the engine reads from the class, and no declaration is misspelt."""
    reserved = {each for each in dir(base) if not each.startswith("_")} | set(_declared_by(kind))
    fields = [field.name for field in dataclasses.fields(kind)]
    for field in fields:
        if field in reserved:
            raise BadInput(
                f"{name}: {field!r} is an attribute of the class and no hyper-parameter; "
                f"write it without an annotation or as ClassVar, or give the field another name"
            )
    for attribute, value in inspect.getmembers_static(kind):
        if attribute.endswith("_field") and attribute not in reserved | set(fields) and isinstance(value, str):
            known = sorted(each for each in reserved if each.endswith("_field"))
            raise BadInput(f"{name}: nothing is declared by {attribute!r}; {suggest(attribute, known)}")


def _declared_by(kind: type) -> list[str]:
    return [each for each in ("window_field",) if hasattr(kind, each)]


def _require_types(kind: type, wanted: Mapping[str, type], name: str) -> None:
    for attribute, of in wanted.items():
        found = inspect.getattr_static(kind, attribute)
        if type(found) is not of:
            raise BadInput(f"{name}: {attribute} must be {of.__name__} written in the class, not {shown(found)}")


def _are_texts(found: object) -> bool:
    return isinstance(found, tuple | list) and all(isinstance(each, str) for each in found)
