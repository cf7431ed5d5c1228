"""Files that a later step reads: each says what it is and carries a digest, and is proven before it is used.

One idea in three forms: a JSON file (`write_json`, `read_json`), tensors in a safetensors file (`write_tensors`,
`read_tensors`), and JSON lines that are appended to one batch after another (`Lines`). `kind` says what a file holds,
`key` what its contents depend on; whoever reads names both. A file that was changed or cut short, or stands in the
place of another, is `Damaged`, and so is a folder where a file should be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mcbench.errors import BadInput
from mcbench.files import printable, write_whole

if TYPE_CHECKING:
    from typing import BinaryIO

T = TypeVar("T")
Line = dict[str, Any]

ROW_DIGITS = 16  # of the digest of one line
CHUNK = 2**20  # bytes hashed at a time
LONGEST_HEADER = 2**27  # bytes: safetensors itself reads no longer one
_OPEN = "0" * 64  # where the digest of a safetensors file will stand
_METADATA = "mcbench"  # the entry of a safetensors file's metadata that is ours


class Damaged(BadInput):
    """A file that is not what it should be; the message names it and says how that shows."""

    @classmethod
    def of(cls, path: Path, kind: str, reason: str) -> Damaged:
        """The error for a file of that kind, whose number of a layout is left out."""
        return cls(f"the {kind.rstrip('0123456789 ')} in {str(path)!r} cannot be used: {reason}")


def note(text: str) -> None:
    """Tells whoever watches, also where progress is muted, that something was not as it should be."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # a full disk behind it ends no run
            sys.stderr.write(f"mcbench: {printable(text)}\n")
            sys.stderr.flush()


def unless_damaged(read: Callable[[], T | None]) -> T | None:
    """What `read` gives; None where it is damaged, which a line on stderr says: for what can be made anew."""
    try:
        return read()
    except Damaged as error:
        note(f"{error}; it is made anew")
        return None


# -- JSON


def content_digest(content: Any) -> str:
    """SHA-256 of a JSON value: by which one file names another that belongs to it."""
    return _digest(json.loads(json.dumps(content)))


def write_json(path: Path, kind: str, key: Any, content: Any) -> None:
    """Writes `content` to a file that is complete or absent; BadInput where it cannot be written."""
    content = json.loads(json.dumps(content))  # as it will be read
    whole = {"kind": kind, "key": key, "digest": _digest([kind, key, content]), "content": content}
    write_whole(path, (json.dumps(whole, indent=1) + "\n").encode())


def read_json(path: Path, kind: str, key: Any = None) -> Any:
    """What `write_json` wrote, None where there is no file; Damaged where it is no such file of this kind and key.

    Without a key that of the file is taken as it is.
    """
    data = read_bytes(path, kind)
    if data is None:
        return None
    try:
        whole = json.loads(data.decode())
        kind_there, key_there, content = whole["kind"], whole["key"], whole["content"]
        proven = whole["digest"] == _digest([kind_there, key_there, content])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Damaged.of(path, kind, "it is cut short or no sealed JSON") from None
    _require(path, kind, key, proven and data.endswith(b"\n"), kind_there, key_there)
    return content


def read_bytes(path: Path, what: str) -> bytes | None:
    """The bytes of a file, None where nothing is there; Damaged where it is no file or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Damaged.of(path, what, "it is no file")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Damaged.of(path, what, error.strerror or str(error)) from None


# -- tensors


def write_tensors(
    path: Path,
    kind: str,
    key: Any,
    tensors: Mapping[str, Any],
    content: Any = None,
    *,
    framework: Literal["pt", "np"] = "pt",
) -> None:
    """Writes tensors by name, contiguous and on the CPU, with what there is to say about them, as `write_json` does."""
    save: Any
    if framework == "pt":
        from safetensors.torch import save
    else:
        from safetensors.numpy import save
    # the digest stands first, so that the first place left open is its own
    own = {"digest": _OPEN, "kind": kind, "key": key, "content": json.loads(json.dumps(content))}
    data: bytes = save(dict(tensors), {_METADATA: json.dumps(own)})
    start = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:start])
    digest = _open_digest(head)
    digest.update(memoryview(data)[start:])
    write_whole(path, data[:start].replace(_OPEN.encode(), digest.hexdigest().encode(), 1) + data[start:])


def read_tensors(
    path: Path, kind: str, key: Any = None, *, framework: Literal["pt", "np"] = "pt"
) -> tuple[dict[str, Any], Any] | None:
    """The tensors by name and the content that `write_tensors` wrote, None where there is no file.

    Raises Damaged as `read_json`. A file is read through once for its digest, and again only after it has changed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        place = path.stat()
        if not stat.S_ISREG(place.st_mode):
            raise Damaged.of(path, kind, "it is no file")
        with path.open("rb") as file:
            own, proven = _proven(file, place)
        _require(path, kind, key, proven, own["kind"], own["key"])
        with safe_open(path, framework=framework) as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, own["content"]  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged.of(path, kind, error.strerror or str(error)) from None
    except Damaged:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged.of(path, kind, "it is cut short or no sealed safetensors file") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, computed once while it does not change; OSError where it cannot be read."""
    with path.open("rb") as file:
        stamp = _stamp(os.fstat(file.fileno()))
        if stamp not in _digests:
            digest = hashlib.sha256()
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            _digests[stamp] = digest.hexdigest()
    return _digests[stamp]


_digests: dict[tuple[int, ...], str] = {}  # of files as they were
_seen: dict[tuple[int, ...], None] = {}  # files whose digest this process has found right, as they were then


def _stamp(place: os.stat_result) -> tuple[int, ...]:
    """What changes whenever a file does."""
    return (place.st_dev, place.st_ino, place.st_size, place.st_mtime_ns, place.st_ctime_ns)


def _proven(file: BinaryIO, place: os.stat_result) -> tuple[dict[str, Any], bool]:
    """What an open safetensors file says about itself, and whether its digest is right."""
    size = int.from_bytes(file.read(8), "little")
    if size > LONGEST_HEADER:
        raise ValueError("no header is as long")
    head = json.loads(file.read(size))
    own: dict[str, Any] = json.loads(head["__metadata__"][_METADATA])
    stamp = _stamp(place)
    if stamp not in _seen:
        digest = _open_digest(head)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        if digest.hexdigest() != own["digest"]:
            return own, False
        _seen[stamp] = None
    return own, True


def _open_digest(head: Mapping[str, Any]) -> Any:
    """SHA-256 of the header of a safetensors file, its own digest left out; the data are still to come."""
    own = json.loads(head["__metadata__"][_METADATA])
    del own["digest"]
    table = {name: entry for name, entry in head.items() if name != "__metadata__"}
    return hashlib.sha256(json.dumps([own, table], sort_keys=True).encode())


# -- lines


class Lines:
    """JSON objects, one on a line, appended batch by batch; the first line says whose they are.

    Each line holds a digest of itself and of the one before, so that none can be changed, moved or left out. What a
    kill left behind the last line end is dropped when the file is read.
    """

    def __init__(self, path: Path, kind: str, owner: Mapping[str, Any]) -> None:
        self.path, self.kind, self.owner = path, kind, dict(owner)
        self._last = ""

    def read(self) -> list[Line]:
        """The lines after the first; an absent file, or one without a whole line, is begun.

        Raises Damaged where a line is not as it was written or the file belongs to another owner, BadInput where it
        cannot be written.
        """
        data = read_bytes(self.path, self.kind) or b""
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            self.begin()
            return []
        owner, rows, self._last = _unsealed(self.path, self.kind, whole)
        if owner != self.owner:
            raise Damaged.of(self.path, self.kind, f"it belongs to another {_differing(self.owner, owner)}")
        if len(whole) < len(data):
            with self._writing(), self.path.open("r+b") as file:
                file.truncate(len(whole))
        return rows

    def begin(self) -> None:
        """Writes the first line alone; what was in the file is gone."""
        self._write([self.owner], "wb", "")

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines, in one write."""
        assert self._last, "a file is read before lines are added"
        self._write(rows, "ab", self._last)

    def _write(self, rows: Iterable[Mapping[str, Any]], mode: str, last: str) -> None:
        lines = []
        for row in rows:
            line, last = _sealed_line(row, last)
            lines.append(line)
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode) as file:
                file.write("".join(lines).encode())
        self._last = last

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BadInput(
                f"{self.kind} cannot be written to {str(self.path)!r}: {error.strerror}; those before are kept, "
                "and the same command goes on from them once that is mended"
            ) from error


def read_lines(path: Path, kind: str, *, whole: bool = True) -> tuple[Line, list[Line]]:
    """The first line and the others of a file that `Lines` wrote, finished or, if not `whole`, cut off by a kill.

    Changes nothing. Raises Damaged where it is absent, cut short or not as it was written.
    """
    data = read_bytes(path, kind)
    if data is None:
        raise Damaged.of(path, kind, "there is no such file")
    data = data if whole else data[: data.rfind(b"\n") + 1]
    if not data.endswith(b"\n"):
        raise Damaged.of(path, kind, "it is cut short")
    return _unsealed(path, kind, data)[:2]


def _sealed_line(row: Mapping[str, Any], last: str) -> tuple[str, str]:
    """A row as a line, and the line's digest."""
    text = json.dumps(row)
    digest = hashlib.sha256((last + text).encode()).hexdigest()[:ROW_DIGITS]
    return f'{text[:-1]}, "digest": "{digest}"}}\n', digest


def _unsealed(path: Path, kind: str, data: bytes) -> tuple[Line, list[Line], str]:
    """The first line, the others, and the digest of the last, of bytes that end with a line end."""
    rows: list[Line] = []
    last = ""
    for number, line in enumerate(data[:-1].split(b"\n"), 1):
        try:
            row = json.loads(line.decode())
            digest = row.pop("digest")
            proven = (line.decode() + "\n", digest) == _sealed_line(row, last)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            proven = False
        if not proven:
            reason = f"line {number} is not as it was written"
            if number == 1 and line.startswith(b'{"schema": 1,') and b'"digest"' not in line:
                reason = "its lines carry no digests, as those of an older mcbench"
            raise Damaged.of(path, kind, reason)
        rows.append(row)
        last = digest
    owner, *others = rows
    return owner, others, last


# -- what all share


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _require(path: Path, kind: str, key: Any, proven: bool, kind_there: Any, key_there: Any) -> None:
    """Raises Damaged unless a file is proven and of that kind and key."""
    if not proven:
        raise Damaged.of(path, kind, "its contents do not match their digest")
    if kind_there != kind:
        raise Damaged.of(path, kind, f"it is another kind of file: {str(kind_there)[:60]!r}")
    if key is not None and key_there != json.loads(json.dumps(key)):
        raise Damaged.of(path, kind, f"it was made for another {_differing(key, key_there)}")


def _differing(wanted: Any, found: Any) -> str:
    """In which of their entries two keys differ, in words."""
    if not isinstance(wanted, Mapping) or not isinstance(found, Mapping):
        return "purpose"
    names = [name for name in wanted if name not in found or found[name] != json.loads(json.dumps(wanted[name]))]
    return " and ".join(names) or "purpose"
