"""Text that is data, written so that it stays text: one function for each format, used wherever that format is written.

Names of methods, models and tasks, parameters and notes come out of files that anybody may have written.
"""

from __future__ import annotations

import html as _html
import json
import re
from typing import Any

from mcbench.files import printable

_LATEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\^{}", "<": "\\ensuremath{<}", ">": "\\ensuremath{>}",
    "±": "$\\pm$", "÷": "$\\div$", "†": "$\\dagger$",
}  # fmt: skip
_MARKDOWN = re.compile(r"[\\`|\[\]$]|(?<![^\W_])_|_(?![^\W_])|#$|://|(?i:\bwww)\.")
_ENTITY = re.compile(r"&(?=[#\w])")
# what a spreadsheet takes for the beginning of a formula, also in a cell that a semicolon or a tab begins to it
_FORMULA = re.compile("(^|[;|\t\r\n])(?=[^\\S\t\r\n]*[=+@\uff1d\uff0b\uff20\uff0d-])")
_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def terminal(text: str) -> str:
    """For a terminal: lines stay lines, and no other character moves, hides or colours what is shown."""
    return "\n".join(map(printable, text.split("\n")))


def latex(text: str) -> str:
    """For the text of a LaTeX document, at the beginning of a row of a table too."""
    written = "".join(_LATEX.get(character, character) for character in printable(text))
    # after a line end, "[" begins its length and "*" its star
    return f"{{{written[0]}}}{written[1:]}" if written[:1] in ("[", "*") else written


def latex_comment(text: str) -> str:
    """For a comment in LaTeX, which any line end would end."""
    return f"% {printable(text)}"


def markdown(text: str) -> str:
    """For one line of Markdown or a cell of its tables: no markup, HTML, link or formula begins in it."""
    written = _ENTITY.sub("&amp;", printable(text)).replace("<", "&lt;").replace(">", "&gt;")
    written = _MARKDOWN.sub(_with_backslash, written)
    for mark in "*~":  # one alone marks nothing but the figure behind which it stands
        if written.count(mark) > 1:
            written = written.replace(mark, f"\\{mark}")
    return written


def markdown_code(text: str) -> str:
    """For Markdown, as code, in which backticks may stand."""
    text = printable(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def csv_cell(value: object) -> object:
    """For a cell of a CSV file: a number as it is; text that a spreadsheet would compute gets an apostrophe before."""
    return _FORMULA.sub(r"\1'", printable(value)) if isinstance(value, str) else value


def html(text: str) -> str:
    """For the text of an HTML page or an attribute in quotes."""
    return _html.escape(printable(text), quote=True)


def json_in_script(data: Any) -> str:
    """JSON that cannot end the element of an HTML page in which it stands; ValueError for NaN and infinity."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "".join(_IN_SCRIPT.get(character, character) for character in text)


def label(text: str) -> str:
    """For a text in a drawing, where no part is a formula: matplotlib leaves out what begins with an underscore."""
    text = terminal(text)
    return f" {text}" if text.startswith("_") else text


def _with_backslash(found: re.Match[str]) -> str:
    text = found[0]
    return f"{text[:-1]}\\." if text.endswith(".") else f"\\{text}"
