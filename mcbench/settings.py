"""Reads `name(field=value, ...)`, the way in which methods and tasks are asked for with their parameters."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from typing import Any

from mcbench.errors import BadInput, UnknownName
from mcbench.registry import suggest


def split_call(text: str) -> tuple[str, str]:
    """The name, and what stands in the brackets behind it; BadInput where they are not closed."""
    name, bracket, inside = text.partition("(")
    if bracket and not inside.endswith(")"):
        raise BadInput(f"{text!r} opens a bracket that it does not close")
    return name.strip(), inside[:-1].strip() if bracket else ""


def read_settings(kind: type[Any], name: str, text: str) -> dict[str, Any]:
    """The values that `field=value, ...` gives to fields of the dataclass `kind`.

    Raises UnknownName for a field that does not exist, BadInput for a value of the wrong type and a field set twice.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    try:
        hints = typing.get_type_hints(kind)
    except NameError as error:
        raise BadInput(f"{name}: an annotation cannot be read: {error}") from error
    values: dict[str, Any] = {}
    for setting in split_outside(text, ",") if text else []:
        key, equals, value = (s.strip() for s in setting.partition("="))
        if not equals:
            raise BadInput(f"{name}: write {setting.strip()!r} as field=value")
        if key not in fields:
            raise UnknownName(f"{name} has no hyper-parameter {key!r}; {suggest(key, fields)}")
        if key in values:
            raise BadInput(f"{name}: {key} is set twice")
        values[key] = _typed(_value(value), hints[key], f"{name}: {key}")
    return values


def split_outside(text: str, separator: str) -> list[str]:
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
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            if value in typing.get_args(option):
                return value
        elif option is float and isinstance(value, int) and not isinstance(value, bool):
            return _finite(value, where)
        elif origin is type(None) and value is None:
            return None
        elif origin in (tuple, list) and isinstance(value, tuple | list):
            return origin(value)
        elif isinstance(value, bool) and option is not bool:
            continue
        elif isinstance(origin, type) and isinstance(value, origin):
            return _finite(value, where) if isinstance(value, float) else value
    wanted = " or ".join(_described(option) for option in options)
    raise BadInput(f"{where} must be {wanted}, not {value!r}")


def _finite(value: float, where: str) -> float:
    if not abs(value) < 1e100:
        raise BadInput(f"{where} must be a number of reasonable size, not {str(value)[:20]}")
    return float(value)


def _described(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(repr(v) for v in typing.get_args(option))
    return getattr(option, "__name__", str(option))
