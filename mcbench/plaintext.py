"""Text files as people keep them: packed or not, with whatever ends of lines, with or without a mark of byte order.

What a file is, its content decides; the end of its name is a second opinion.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mcbench.errors import BadInput

SUFFIXES = ("", ".gz", ".bz2", ".xz")


class Misfit(BadInput):
    """What is wrong with a file, without its folder."""


def text_of(path: Path) -> str:
    """The text of a file, unpacked, without a byte order mark, its lines ending as they end in the file.

    Raises Misfit for a file that is damaged, cut short, or no text in UTF-8, OSError where it cannot be read.
    """
    content = unpacked(path)
    for mark, encoding in _OTHER_MARKS:
        if content.startswith(mark):
            raise Misfit(f"{path.name} is text in {encoding}: save it as UTF-8")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Misfit(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from None


def unpacked(path: Path) -> bytes:
    """The bytes of a file; those within where it is packed by gzip, bzip2 or xz, whatever it is called.

    Raises Misfit for what is damaged, cut short or packed otherwise, OSError where the file cannot be read.
    """
    content = path.read_bytes()
    for mark, what in _OTHER_PACKS:
        if content.startswith(mark):
            raise Misfit(f"{path.name} is {what}: unpack it first")
    suffix = path.suffix.lower()
    found = next((pack for pack, marks in _MARKS.items() if content.startswith(marks)), suffix)
    unpack = _UNPACK.get(found)
    if unpack is None:
        return content
    try:
        inner = unpack(content)
    except (EOFError, ValueError, OSError, lzma.LZMAError, zlib.error) as error:
        raise Misfit(f"{path.name} is damaged or cut short ({error})") from None
    if not inner:
        raise Misfit(f"{path.name} is empty or cut short")
    return inner


def with_newlines(text: str) -> str:
    """The text with each line ended by a newline alone, where a carriage return ended some or went before it."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def json_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON text with the place of each, for people: those of a list, or one on every line.

    Which of the two it is, the text decides; a single object over several lines is one row. Raises Misfit, with the
    `name` of the file and the line, for what is no JSON.
    """
    first = text.lstrip().partition("\n")[0]
    if first.startswith("[") or (first.startswith("{") and not is_json(first)):
        found = _json(text, name)
        rows = found if isinstance(found, list) else [found]
        yield from ((f"{name} entry {at}", row) for at, row in enumerate(rows, start=1))
        return
    for at, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name} line {at}", _json(line, f"{name} line {at}")


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json(text: str, where: str) -> Any:
    try:
        found = json.loads(text)
        if "\\ud" in text.lower():  # half of a character is no text, and no tokenizer takes it
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Misfit(f"{where} holds half a character (\\ud800 to \\udfff): remove it") from None
    except (ValueError, RecursionError) as error:
        raise Misfit(f"{where} is no JSON, damaged or cut short ({error})") from None
    return found


def table_rows(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a parquet or arrow file, whatever it is called; None for another file.

    Raises Misfit where it is damaged or cut short, OSError where it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
    suffix = path.suffix.lower()
    if start.startswith(b"PAR1") or suffix == ".parquet":
        return parquet_rows(path)
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or suffix in (".arrow", ".feather"):
        return arrow_rows(path)
    return None


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file; Misfit where it is damaged or cut short."""
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.ParquetFile(path).read().to_pylist())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Misfit(f"{path.name} is no parquet file, damaged or cut short ({_short(error)})") from None


def arrow_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an arrow stream, as `datasets` saves it, or arrow file; Misfit where it is damaged or cut short."""
    import pyarrow

    content = path.read_bytes()
    as_file = content.startswith(b"ARROW1")
    try:
        with pyarrow.ipc.open_file(content) if as_file else pyarrow.ipc.open_stream(content) as opened:
            table = opened.read_all()
        table.validate(full=True)  # else offsets that point nowhere end the process
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Misfit(f"{path.name} is no arrow stream, damaged or cut short ({_short(error)})") from None
    if not as_file and not content.endswith(_ARROW_END):
        raise Misfit(f"{path.name} is cut short")
    return list(rows)


_ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def written_elsewhere(text: str) -> bool:
    """Whether no line ends in a newline alone, though there are ends: the file was converted as a whole."""
    return "\r" in text and text.count("\n") == text.count("\r\n")


def _bunzip(content: bytes) -> bytes:
    """As `bz2.decompress`, which takes an empty file for a whole one."""
    if not content:
        raise ValueError("no data")
    return bz2.decompress(content)


_UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": _bunzip, ".xz": lzma.decompress}
_MARKS: dict[str, tuple[bytes, ...]] = {
    ".gz": (b"\x1f\x8b",),
    # behind the level, the first block or the end of a file without one
    ".bz2": tuple(
        b"BZh%d%b" % (level, magic) for level in range(1, 10) for magic in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
    ),
    ".xz": (b"\xfd7zXZ\x00",),
}
_OTHER_PACKS = (
    (b"\x28\xb5\x2f\xfd", "packed by zstd"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
)
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
