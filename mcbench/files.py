"""Files read or refused with the reason, written complete or not at all, and tried early for whether that can be."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mcbench.errors import BadInput


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


def read_text(path: Path, what: str) -> str:
    """The UTF-8 text of a file, which an error calls `what`; BadInput where it cannot be read."""
    try:
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
    except OSError as error:
        raise BadInput(f"the output folder {str(folder)!r} cannot be written: {error.strerror}") from None


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before
