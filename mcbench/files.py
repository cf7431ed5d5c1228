"""Files read or refused with the reason, written complete or not at all, and tried early for whether that can be."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

from mcbench.errors import BadInput

DEEPEST = 32  # lists and objects inside one another in a file of ours
LARGEST = 1e300  # of a number in a file of ours: three hundred of them still have a sum
# control characters, half characters, what is no character, and what is not seen or turns the direction of writing;
# joiners, which scripts and emoji need, only where they join no two characters of such a script
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u2800\u3164\ud800-\udfff\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e01ef]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)


def printable(text: str) -> str:
    """The text with every character that is not seen, or moves what is, written as its number: "\\u202e"."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def read_json(text: str) -> Any:
    """The value that a JSON text of ours stands for; ValueError, with the reason, where it is not plain.

    Plain is what `json.dumps` writes: no name twice in an object, nothing nested deeper than files of ours are, no
    number that JSON does not know or that no measurement gives, no character that `printable` would write as a number.
    """
    try:
        found = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_number, parse_constant=_constant
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    level = [found]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if type(value) is str:
                _require_printable(value)
            elif type(value) is dict:
                for name in value:
                    _require_printable(name)
                inner += [each for each in value.values() if type(each) in (str, dict, list)]
            elif type(value) is list:
                inner += [each for each in value if type(each) in (str, dict, list)]
        if not inner:
            return found
        level = inner
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{printable(twice)!r} stands there twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > len(str(-(2**63))) or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"the number {digits[:10]}... of {len(digits)} digits is none of ours")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not abs(value) <= LARGEST:
        raise ValueError(f"the number {digits[:20]} is none of ours")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _require_printable(text: str) -> None:
    if found := UNPRINTABLE.search(text):
        raise ValueError(f"{printable(text)[:60]!r} holds the control character U+{ord(found[0]):04X}")


PACKED = "compression.json"  # marks the folder of a compressed model


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is complete or absent, also after a crash: a neighbour, flushed to disk, then renamed.

    Raises BadInput where the folder cannot be made or written.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as error:
        raise BadInput(f"{str(path)!r} cannot be written: {error.strerror}") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


LONGEST = 2**30  # bytes of a file that is read as one text


def require_file(path: Path, what: str, largest: int | None = None) -> None:
    """Raises BadInput, which calls it `what`, for a device or pipe, which may have no end, and for one too large.

    OSError where there is nothing or it may not be looked at; a folder is left to who reads it.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
        raise BadInput(f"{what} cannot be read: {str(path)!r} is a device, pipe or socket; save its content as a file")
    if largest is not None and state.st_size > largest:
        raise BadInput(f"{what} cannot be read: it has {state.st_size:,} bytes, and {largest:,} are the most")


def read_text(path: Path, what: str) -> str:
    """The UTF-8 text of a file, which an error calls `what`; BadInput where it cannot be read."""
    try:
        require_file(path, what, LONGEST)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadInput(f"{what} cannot be read: {reason}") from None


def require_writable(folder: str | Path) -> None:
    """Makes `folder` and proves that files can be written there, before hours of work; BadInput where not."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except (OSError, ValueError) as error:  # ValueError for what no path can hold
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"the output folder {str(folder)!r} cannot be written: {reason}") from None


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before
