"""The reference model: a small, really trained MoE, the world it knows and held-out questions about that world."""

from __future__ import annotations

from pathlib import Path

from mcbench.errors import UnknownName
from mcbench.reference.families import FAMILIES, calibration_text, chance, items
from mcbench.registry import suggest

__all__ = ["FAMILIES", "calibration_text", "chance", "folder", "items", "model_names"]

_WEIGHTS = Path(__file__).parent / "weights"


def model_names() -> list[str]:
    """The models that are shipped, by name."""
    return sorted(path.parent.name for path in _WEIGHTS.glob("*/config.json"))


def folder(name: str = "reference") -> Path:
    """The folder of a shipped model, as transformers loads it. Raises UnknownName where there is none of that name."""
    if name not in model_names():
        raise UnknownName(f"no reference model is called {name!r}; {suggest(name, model_names())}")
    return _WEIGHTS / name
