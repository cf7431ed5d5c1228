"""The reference model: a small, really trained MoE, the world it knows and held-out questions about that world."""

from __future__ import annotations

from pathlib import Path

from mcbench.reference.families import FAMILIES, calibration_text, chance, items

__all__ = ["FAMILIES", "calibration_text", "chance", "folder", "items"]

_WEIGHTS = Path(__file__).parent / "weights"


def folder(name: str = "reference") -> Path:
    """The folder of a shipped model, as transformers loads it."""
    known = sorted(path.parent.name for path in _WEIGHTS.glob("*/config.json"))
    if name not in known:
        raise LookupError(f"no reference model is called {name!r} (known: {', '.join(known) or 'none'})")
    return _WEIGHTS / name
