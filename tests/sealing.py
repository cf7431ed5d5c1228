"""Edits of sealed files that keep their digests right, for tests: `from sealing import reseal`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mcbench.sealed import Lines, write_json, write_tensors


def reseal(text: str) -> str:
    """JSON lines that were edited, with digests that fit what they say now; what is no object stays as it is."""
    lines, last = [], ""
    for line in text.splitlines():
        row = json.loads(line)
        row.pop("digest", None)
        plain = json.dumps(row)
        last = hashlib.sha256((last + plain).encode()).hexdigest()[:16]
        lines.append(f'{plain[:-1]}, "digest": "{last}"}}\n')
    return "".join(lines)


def rewrite_lines(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Lets `change` edit the objects of a file of lines in place, and seals them again."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["digest"]
    change(rows)
    path.unlink()
    file = Lines(path, "", rows[0])
    file.begin()
    file.append(rows[1:])


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Lets `change` edit kind, key and content of a sealed JSON file, and seals it again."""
    whole = json.loads(path.read_text())
    change(whole)
    write_json(path, whole["kind"], whole["key"], whole["content"])


def rewrite_tensors(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Lets `change` edit tensors, and kind, key and content, of a sealed safetensors file, and seals it again."""
    with safe_open(path, framework="pt") as file:
        own = json.loads(file.metadata()["mcbench"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    change(tensors, own)
    write_tensors(path, own["kind"], own["key"], tensors, own["content"])


def cells(journal: Path) -> list[dict[str, Any]]:
    """The outcomes in the journal of a sweep."""
    return [cell["outcome"] for cell in json.loads(journal.read_text())["content"].values()]
