"""The last net: what nobody foresaw is told in one sentence, and the details are kept in a file."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from mcbench import __version__
from mcbench.bounds import SHOWN

UNFORESEEN = 70  # EX_SOFTWARE of sysexits: an error of the program, not of its input
DEBUG = "MCBENCH_DEBUG"  # set, it shows the details of every failure
LONGEST = 4 * SHOWN  # characters of an error's own words
_ENDLESS = re.compile(r"\S{4096,}")  # longer than any path can be
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory", re.IGNORECASE)


def debugging() -> bool:
    """Whether the details of failures are shown."""
    return bool(os.environ.get(DEBUG))


def out_of_memory(error: BaseException) -> bool:
    """Whether the machine or the device had too little memory, in whatever words that came."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError | OSError) and bool(_NO_MEMORY.search(str(error)))
    )


def sentence(error: BaseException, folder: Path | None = None) -> str:
    """What happened in one sentence, with the file that holds the details: in `folder`, else in the temporary one."""
    what = _what(error)
    kept = keep_details(error, folder)
    where = f"details in {str(kept)!r}" if kept else "no file could be written for the details"
    return f"{what}; {where}, and --debug shows them"


def keep_details(error: BaseException, folder: Path | None = None) -> Path | None:
    """Writes traceback, command and versions to a new file; None where that is not possible anywhere."""
    with contextlib.suppress(Exception):
        text = "\n".join([*_circumstances(), "", *traceback.format_exception(error)])
        for place in (folder, Path(tempfile.gettempdir())):
            with contextlib.suppress(OSError, ValueError):
                if place is not None and place.is_dir():
                    return _new_file(place, text)
    return None


def bearable(text: str) -> str:
    """A message with the middle of each endless word left out, such as a path that was typed by mistake."""
    return _ENDLESS.sub(lambda word: f"{word.group()[:SHOWN]}[... {len(word.group()):,} characters]", text)


def summary(error: BaseException) -> str:
    """Kind and first line of an exception, on one line and of bearable length."""
    said = "".join(c if c.isprintable() else " " for c in str(error)).split()
    text = " ".join([f"{type(error).__name__}{':' if said else ''}", *said])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _what(error: BaseException) -> str:
    if out_of_memory(error):
        return f"the memory does not suffice ({summary(error)}); ask for less at a time, or use a larger machine"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply ({summary(error)})"
    if isinstance(error, SystemExit):
        return f"something that was called tried to end the program ({summary(error)})"
    return f"an error that mcbench does not foresee ({summary(error)}{_place(error)})"


def _place(error: BaseException) -> str:
    """The innermost function of ours that the error went through."""
    frames = [(str(f.f_globals.get("__name__")), f.f_code) for f, _ in traceback.walk_tb(error.__traceback__)]
    ours = [f"{module}.{code.co_qualname}" for module, code in frames if module.startswith("mcbench")]
    return f" in {ours[-1]}" if ours else ""


def _circumstances() -> Sequence[str]:
    versions = [f"mcbench {__version__}", f"Python {platform.python_version()}", platform.platform()]
    for name in ("torch", "transformers", "lm_eval"):
        if (module := sys.modules.get(name)) is not None:
            versions.append(f"{name} {getattr(module, '__version__', '?')}")
    return [time.strftime("%Y-%m-%d %H:%M:%S"), f"command: {sys.argv!r}", ", ".join(versions)]


def _new_file(folder: Path, text: str) -> Path:
    name = f"mcbench-failure-{time.strftime('%Y%m%d-%H%M%S')}-"
    number, path = tempfile.mkstemp(prefix=name, suffix=".txt", dir=folder)
    with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return Path(path)
