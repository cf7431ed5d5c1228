"""The reference model: a small, really trained MoE, the world it knows and held-out questions about that world."""

from __future__ import annotations

from pathlib import Path

from mcbench.errors import BadInput, UnknownName
from mcbench.reference.families import FAMILIES, calibration_text, chance, items
from mcbench.registry import suggest
from mcbench.sealed import file_digest

__all__ = ["FAMILIES", "calibration_text", "chance", "folder", "items", "model_names"]

_WEIGHTS = Path(__file__).parent / "weights"
_SHARED = {
    "tokenizer.json": "f0be79d1db2285c9472ac026e81393754de7f0e51fca5c755bec36e7b09fe489",
    "tokenizer_config.json": "64cd75ad7915ebb8effe5f6268745d908ca2c9aff060ddccdb9cfdf742677f1a",
}
# SHA-256 of what a model is read from: training one anew changes them
_DIGESTS = {
    "reference": {
        "model.safetensors": "1cd07a95dce96b1fd6dffe432890a195f01be2f6c3afd2a0b6f86eadfd55b1b4",
        "config.json": "6d065c43ac1ce35c0fe7ad87ae3b951fba898c396ff4c9bd00df4cd6f194003c",
        **_SHARED,
    },
    "reference-fine": {
        "model.safetensors": "4af0c2a16048a8ce652435405c7c6c59f3d148a6412f9cba1758cfaade931a25",
        "config.json": "4dd70f7348862a5755cbbb9819aafae11bff5aeec1f63d67b84313aa2088d0d1",
        **_SHARED,
    },
}


def model_names() -> list[str]:
    """The models that are shipped, by name."""
    return sorted(path.parent.name for path in _WEIGHTS.glob("*/config.json"))


def folder(name: str = "reference") -> Path:
    """The folder of a shipped model, as transformers loads it.

    Raises UnknownName where there is none of that name, BadInput where a file of it is not the one that was shipped.
    """
    if name not in model_names():
        raise UnknownName(f"no reference model is called {name!r}; {suggest(name, model_names())}")
    place = _WEIGHTS / name
    for file, digest in _DIGESTS.get(name, {}).items():
        try:
            whole = file_digest(place / file) == digest
        except OSError:
            whole = False
        if not whole:
            raise BadInput(f"{str(place / file)!r} is not the file that mcbench ships; install mcbench again")
    return place
