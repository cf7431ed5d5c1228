"""Text files as people keep them: packed or not, with whatever ends of lines, with or without a mark of byte order.

What a file is, its content decides; the end of its name is a second opinion.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

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
