"""Names, parameters and notes out of files stay text in every format that is written, whatever they hold."""

from __future__ import annotations

import csv
import dataclasses
import functools
import html.parser
import io
import json
import re
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from records import sample_record, sample_result

from mcbench import escape, progress
from mcbench.cli import main
from mcbench.errors import BadInput
from mcbench.figure import figure
from mcbench.files import printable
from mcbench.leaderboard import leaderboard
from mcbench.record import Record
from mcbench.report import table
from mcbench.sealed import note

Written = Callable[[str], dict[str, str]]
HOSTILE = [
    "=HYPERLINK(\"http://x.y\")", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "a;=1+1", "\uff1d1", " =1",
    "\\input{/etc/passwd}", "% \\end{tabular}", "[9cm]", "*x", "a & b \\\\ c", "$\\frac$", "$", "x^2_3~{}#",
    "</script><script>alert(1)</script>", "<!--", "\"onmouseover=alert(1)//", "&lt;b&gt;", "'", "{{7*7}}", "${data}",
    "a | b", "`rm`", "``", "[here](javascript:alert(1))", "![](http://x.y/z.png)", "https://x.y", "www.x.y", "*a*b*",
    "__proto__", "_hidden", "~~gone~~", "heading #", "a\\", "\\`", "\\|", "--", "{tabular}", "\\midrule", "[/red]",
]  # fmt: skip
CONTROLS = [
    "\0", "\a", "\b", "\t", "\n", "\v", "\f", "\r", "\x1b[2J", "\x7f", "\x85", "\x9b1m", "\u00ad", "\u034f", "\u061c",
    "\u115f", "\u200b", "\u200c", "\u200d", "\u200e", "\u202e", "\u2028", "\u2029", "\u2060", "\u2066", "\u2069",
    "\u2800", "\u3164", "\ud800", "\udfff", "\ufeff", "\uffa0", "\uffff", "\U000e0041", "\U000e0100",
]  # fmt: skip


def hostile_record(text: str, **changes: object) -> Record:
    """A whole record in which every name that a table, a page or a drawing shows is this text."""
    plain = sample_record()
    result = sample_result(text, protocol=f"{text}@1", metric=text, outcomes=(1.0,) * 60 + (0.0,) * 40)
    assert plain.calibration is not None
    fields = {
        "method": f"{text}", "asked": text, "results": (result,), "fallbacks": (text,),
        "model": dataclasses.replace(plain.model, name=text, architecture=text),
        "calibration": dataclasses.replace(plain.calibration, source=text),
    }  # fmt: skip
    return sample_record(**{**fields, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The files of the leaderboard of one record in which every name is this text, by name; made once."""

    @functools.cache
    def make(text: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("written")
        hostile_record(text).save(folder / "runs" / "record.json")
        leaderboard([folder / "runs"], folder / "out")
        return {path.name: path.read_text(encoding="utf-8") for path in (folder / "out").iterdir()}

    return make


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
@pytest.mark.parametrize("place", ["method", "model", "task", "a key"])
def test_a_record_with_a_control_character_is_refused_with_its_number(place: str, control: str) -> None:
    name = f"pm{control}q"
    record = {
        "method": lambda: sample_record(method=name),
        "model": lambda: sample_record(model=dataclasses.replace(sample_record().model, name=name)),
        "task": lambda: sample_record(results=(sample_result(name),)),
        "a key": lambda: sample_record(stages={name: 1.0}),
    }[place]()
    text = record.to_json()
    assert control == "\n" or control not in text
    raw = text.replace(json.dumps(printable(name))[1:-1], json.dumps(name)[1:-1])
    assert raw != text
    with pytest.raises(BadInput, match=f"holds the control character U\\+{ord(control[0]):04X}") as told:
        Record.from_json(raw)
    assert control[0] not in str(told.value)


@pytest.mark.parametrize("name", ["\u0646\u0645\u06cc\u200c\u062e\u0648\u0627", "\U0001f469\u200d\U0001f52c", "größe"])
def test_names_of_every_script_stay(name: str) -> None:
    assert Record.from_json(sample_record(method=name).to_json()).method == name


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_is_a_formula_to_a_spreadsheet(text: str, written: Written) -> None:
    found = list(csv.DictReader(io.StringIO(written(text)["leaderboard.csv"])))
    assert len(found) == 1
    for column in ("model", "method", "task", "protocol", "metric"):
        cell = found[0][column]
        assert cell.replace("'", "").startswith(text.replace("'", ""))
        for separated in (cell, *re.split("[;|]", cell)):
            assert separated.lstrip()[:1] not in tuple("=+-@\uff1d\uff0b\uff20\uff0d") or not separated.strip()
    assert float(found[0]["value"]) == 0.6 or found[0]["value"]


def test_numbers_in_a_csv_stay_numbers() -> None:
    assert [escape.csv_cell(value) for value in (-1.5, -2, None, True)] == [-1.5, -2, None, True]


def latex_text(written: str) -> str:
    """What LaTeX would print for escaped text; fails at anything that would be a command, a group or a comment."""
    known = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\^{}": "^", r"\ensuremath{<}": "<"}
    known |= {r"\ensuremath{>}": ">", r"$\pm$": "±", r"$\div$": "÷", "{[}": "[", "{*}": "*"}
    known |= {f"\\{c}": c for c in "&%$#_{}"}
    shown, at = "", 0
    while at < len(written):
        command = next((c for c in sorted(known, key=len, reverse=True) if written.startswith(c, at)), written[at])
        assert command in known or command not in tuple("\\&%$#_{}~^<>"), (written, at)
        shown, at = shown + known.get(command, command), at + len(command)
    return shown


@pytest.mark.parametrize("text", [*HOSTILE, "±", "÷"])
def test_latex_prints_a_name_as_it_is(text: str, written: Written) -> None:
    assert latex_text(escape.latex(text)) == text
    assert not escape.latex(text).startswith(("[", "*"))
    file = written(text)["leaderboard.tex"]
    assert escape.latex(text).strip() in file
    lines = [line for line in file.splitlines() if line and not line.startswith("%")]
    assert [line for line in lines if not line.rstrip().endswith("\\\\")] == [
        "\\begin{tabular}{lrrrrrr}", "\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}"
    ]  # fmt: skip
    for line in lines:
        if line.endswith("\\\\"):
            cells = re.split(r"(?<!\\)&", line.removesuffix("\\\\"))
            assert len(cells) == 7
            list(map(latex_text, (cell.removesuffix(" $\\dagger$ ") for cell in cells)))


def test_a_comment_in_latex_has_no_second_line() -> None:
    for line_end in ("\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"):
        assert len(escape.latex_comment(f"a{line_end}\\input{{x}}").splitlines()) == 1


def markdown_text(written: str) -> str:
    """What Markdown shows for escaped text; fails at anything that would begin markup, a link, HTML or a formula."""
    shown = re.sub(r"\\([!-/:-@\[-`{-~])", lambda found: f"\0{ord(found[1]):04x}", written)
    assert not re.search(r"[`|\[\]$<>]|://|(?<![^\W_])_|_(?![^\W_])", shown), written
    assert shown.count("*") < 2 and shown.count("~") < 2 and not re.search(r"(?i)\bwww\.", shown), written
    shown = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return re.sub(r"\0(....)", lambda found: chr(int(found[1], 16)), shown)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_a_name_as_it_is(text: str, written: Written) -> None:
    assert markdown_text(escape.markdown(text)) == text
    lines = written(text)["README.md"].splitlines()
    assert f"## {escape.markdown(f'{text} ({text})')}" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(re.split(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows[:3]}) == 1
    for row in rows[2:3]:
        for cell in re.split(r"(?<!\\)\|", row)[1:-1]:
            markdown_text(cell)


@pytest.mark.parametrize("text", ["a`b", "``", "`", "a``b`c", "plain"])
def test_code_in_markdown_ends_where_it_should(text: str) -> None:
    written = escape.markdown_code(text)
    fence = re.match("`+", written)
    assert fence is not None and written.endswith(fence[0]) and fence[0] not in re.findall("`+", text)
    assert written.strip("`").strip() == text.strip("`").strip() or text in written


class Page(html.parser.HTMLParser):
    """The tags and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_has_the_same_elements_whatever_names_are_in_it(written: Written) -> None:
    shapes = []
    for text in ("plain", *HOSTILE):
        page = Page()
        page.feed(written(text)["leaderboard.html"])
        shapes.append(page.tags)
        assert text in page.texts
        (data,) = (json.loads(found) for found in page.texts if found.startswith('{"records"'))
        assert list(data["tasks"]) == [f"{text}@1"]
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "]]>", "\u2028", "&amp;"])
def test_json_in_a_page_ends_no_element(text: str) -> None:
    found = escape.json_in_script({text: [text]})
    assert json.loads(found) == {text: [text]} and not set("<>&\u2028\u2029") & set(found)


@pytest.mark.parametrize("text", ["$\\frac$", "$a$ b", "$", "_hidden", "a\\$b", '<&>"', "x^2", "--"])
def test_a_drawing_shows_a_name_as_it_is(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawings need the extra `figures`")
    hostile_record(text).save(tmp_path / "runs" / "record.json")
    out = tmp_path / "drawn.svg"
    figure("tradeoff", [tmp_path / "runs"], out)
    texts = ["".join(e.itertext()) for e in xml.etree.ElementTree.parse(out).iter() if e.tag.endswith("text")]
    assert f"{text} ({text})".strip() in [each.strip() for each in texts]  # the title
    assert text in [each.strip() for each in texts]  # the legend
    figure("allocation", [tmp_path / "runs"], tmp_path / "widths.png")


def test_nothing_that_is_printed_moves_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a\x1b[2Jb\x9bc\u202ed"
    assert escape.terminal(f"{name}\n{name}").count("\n") == 1
    monkeypatch.setattr("mcbench.report.table", lambda record: name)
    monkeypatch.setattr("mcbench.pipeline.run", lambda *_, **__: sample_record())
    main(["run", "--method", "none", "--out", str(tmp_path)])
    main(["run", "--method", f"{name}+rtn", "--out", str(tmp_path)])
    main(["leaderboard", str(tmp_path / name), "--out", str(tmp_path)])
    note(f"{name} is damaged")
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert text and not set(text) & set("\x1b\x9b\u202e")


def test_the_progress_of_a_step_reads_no_markup_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "NOTEWORTHY_SECONDS", 0.0)
    with progress.stage("reading ./[/red]\x1b[2J"):
        pass
    assert "reading ./[/red]\\x1b[2J:" in screen.getvalue()


def test_a_report_of_hostile_names_is_plain_text() -> None:
    for text in HOSTILE:
        assert text in table(hostile_record(text))
