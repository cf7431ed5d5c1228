"""How large a parameter may be: bounds are declared beside the type of a field and held wherever a value comes from.

    rounds: Annotated[int, Between(1, 20)] = 3

A method or task is checked when it is made, the settings of a run (SETTINGS) before anything is imported or read.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from mcbench.errors import BadInput

LONGEST_TEXT = 4096  # characters of a parameter
SHOWN = 60  # characters of a refused value


@dataclass(frozen=True)
class Between:
    """The numbers from `low` to `high`, both included; of a tuple each element, and at most `most` of them."""

    low: float
    high: float
    most: int = 10_000

    def require(self, value: Any, what: str) -> None:
        """Raises BadInput, which calls the value `what`, for one that is outside, NaN or no number."""
        if isinstance(value, tuple | list):
            if len(value) > self.most:
                raise BadInput(f"{what} has at most {self.most:,} values, not {len(value):,}")
            for each in value:
                self.require(each, f"each value of {what}")
        elif isinstance(value, bool) or not self._holds(value):
            raise BadInput(f"{what} must lie {self}, not {shown(value)}")

    def _holds(self, number: Any) -> bool:
        return hasattr(number, "__float__") and bool(self.low <= number <= self.high)

    def __str__(self) -> str:
        return f"between {_written(self.low)} and {_written(self.high)}"


SEED = Between(0, 2**32 - 1)
ANY = Between(-1e9, 1e9)  # where a contribution declares nothing
Seed = Annotated[int, SEED]
Count = Annotated[int, Between(1, 5_000)]  # of items that are made up
Window = Annotated[int, Between(0, 2**20)]  # tokens predicted at a time, 0 for the model's own
GroupSize = Annotated[int, Between(-1, 2**20)]  # weights that share a scale, -1 for whole rows
Width = Annotated[int, Between(1, 16)]
Share = Annotated[float, Between(0, 0.9999)]  # of pairs that are skipped
Exponent = Annotated[float, Between(-10, 10)]
Floor = Annotated[int | float, Between(0, 10_000)]  # a count of experts, or a share of them
Layers = Annotated[tuple[int, ...], Between(0, 10_000)]  # of a model, counted from 0

SETTINGS: Mapping[str, Between] = {
    "bits": Between(0.01, 16),
    "expert_bits": Between(0.01, 16),
    "seed": SEED,
    "samples": Between(1, 1_000_000),
    "length": Between(2, 2**20),
    "limit": Between(1, 10**9),
    "repeats": Between(1, 1000),
    "warmup": Between(1, 1000),
    "table": Between(1, 10_000),
    "confidence": Between(0.5, 1),
    "margin": Between(0, 100),
    "perplexity_margin": Between(0, 100),
    "cpus": Between(1, 4096),
    "gpus": Between(0, 1024),
    "memory_gb": Between(0, 1e6),
}


def require_settings(**values: object) -> None:
    """Raises BadInput for the first of these settings that is out of its bounds; None is one that nobody set."""
    for name, value in values.items():
        if value is not None:
            SETTINGS[name].require(value, f"the {name.replace('_gb', ' in GB').replace('_', ' ')}")


def require_bounds(made: Any, name: str) -> None:
    """Raises BadInput for the first field of a dataclass object that is out of its bounds; the message says `name`."""
    for field, bounds in declared(type(made)).items():
        require_value(getattr(made, field), bounds, f"{name}: {field}")


def require_value(value: object, bounds: Between | None, what: str) -> None:
    """The same for one value; without declared bounds those of any number, text or tuple hold."""
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            raise BadInput(f"{what} has at most {LONGEST_TEXT:,} characters, not {len(value):,}")
    elif isinstance(value, tuple | list) and bounds is None:
        if len(value) > ANY.most:
            raise BadInput(f"{what} has at most {ANY.most:,} values, not {len(value):,}")
    elif isinstance(value, numbers.Real | tuple | list) and not isinstance(value, bool):
        (bounds or ANY).require(value, what)


def declared(kind: type) -> Mapping[str, Between | None]:
    """The bounds of each field of a dataclass; None where none are declared."""
    hints = hints_of(kind)
    return {field.name: bounds_in(hints[field.name]) for field in dataclasses.fields(kind)}


def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a class with what stands beside the types; BadInput for one that cannot be read."""
    try:
        return get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise BadInput(f"{kind.__name__}: an annotation cannot be read: {error}") from error


def bounds_in(hint: Any) -> Between | None:
    """The bounds that stand in an annotation, also in one of its alternatives."""
    if get_origin(hint) in (Union, UnionType):
        return next((found for each in get_args(hint) if (found := bounds_in(each))), None)
    return next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Between)), None)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, without what stands beside them."""
    if get_origin(hint) is Annotated:
        return alternatives(hint.__origin__)
    if get_origin(hint) in (Union, UnionType):
        return tuple(inner for each in get_args(hint) for inner in alternatives(each))
    return (hint,)


def shown(value: object) -> str:
    """A value as a message repeats it: on one line, shortened where it is long."""
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN:
        return f"{'-' if value < 0 else ''}1e{int(value.bit_length() * 0.30103)} or so"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _written(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
