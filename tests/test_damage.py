"""Whatever happens to a file under the output folder: it is refused by name, or made anew with a message.

Never is another record written, and no traceback shown.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sealing import rewrite_json, rewrite_lines, rewrite_tensors
from tiny import tiny_folder, tiny_text

from mcbench import sealed
from mcbench.cli import main

METHOD = "pmq+gptq+odp(skip=0.2, protect=0.05)"
Damage = Callable[[Path, Path], object]  # of a file, where the same file of another run lies too


# -- what can happen to a file of any kind


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def cut(share: float, path: Path, other: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: min(len(data) - 1, int(share * len(data)))])


def flipped(share: float, path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[min(len(data) - 2, int(share * len(data)))] ^= 4
    path.write_bytes(data)


def of_another_run(path: Path, other: Path) -> None:
    shutil.copy(other, path)


def a_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("something")


def a_link_to_another_file(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


def a_link_to_itself(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def a_pipe(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def of_another_place(path: Path, other: Path) -> None:
    """Its neighbour of the same form, where there is one."""
    neighbours = [near for near in sorted(path.parent.parent.rglob(f"*{path.suffix}")) if is_kept(near)]
    different = [near for near in neighbours if near.read_bytes() != path.read_bytes()]
    shutil.copy(different[0] if different else other, path)


def in_another_encoding(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes().decode("latin-1").encode("utf-16"))


def with_a_mark_of_byte_order(path: Path, other: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


ANY: dict[str, Damage] = {
    "empty": emptied,
    **{f"cut at {share:g}": partial(cut, share) for share in (0.01, 0.3, 0.9, 1)},
    **{f"a bit flipped at {share:g}": partial(flipped, share) for share in (0, 0.02, 0.4, 0.7, 1)},
    "of another run": of_another_run,
    "of another place": of_another_place,
    "a folder": a_folder,
    "a link to another file": a_link_to_another_file,
    "a link to itself": a_link_to_itself,
    "a pipe": a_pipe,
    "in another encoding": in_another_encoding,
    "with a mark of byte order": with_a_mark_of_byte_order,
}


# -- what can be written into one by somebody who seals it again


def edited(change: Callable[[Any], object], path: Path, other: Path) -> None:
    """Lets `change` edit the description of a sealed file, or the lines of one; the digests are right again."""
    if path.suffix == ".jsonl":
        rewrite_lines(path, lambda rows: change(rows[0]))
    elif path.suffix == ".json":
        rewrite_json(path, change)
    else:
        rewrite_tensors(path, lambda tensors, own: change(own))


def renamed(what: dict[str, Any]) -> None:
    """Another kind, or owner of samples."""
    what["kind" if "kind" in what else "model"] = "something else"


def of_another_layout(what: dict[str, Any]) -> None:
    if "kind" in what:
        what["kind"] = what["kind"].rstrip("0123456789") + "99"
    else:
        what["schema"] = 99


def keyed_otherwise(what: dict[str, Any]) -> None:
    key = what.get("key", what)
    name = sorted(key)[0] if "protocol" not in key else "protocol"
    key[name] = "another"


SEALED: dict[str, Damage] = {
    "of another kind": partial(edited, renamed),
    "of another layout": partial(edited, of_another_layout),
    "with another key": partial(edited, keyed_otherwise),
}


def lines(change: Callable[[list[bytes]], list[bytes]], path: Path, other: Path) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def sealed_row(change: Callable[[dict[str, Any]], object], path: Path, other: Path) -> None:
    rewrite_lines(path, lambda rows: change(rows[2]))


def sealed_rows(change: Callable[[list[dict[str, Any]]], object], path: Path, other: Path) -> None:
    rewrite_lines(path, change)


OF_LINES: dict[str, Damage] = {
    "one line less at the end": partial(lines, lambda rows: rows[:-1]),
    "one line less in the middle": partial(lines, lambda rows: [*rows[:2], *rows[3:]]),
    "two lines in the other order": partial(lines, lambda rows: [rows[0], rows[2], rows[1], *rows[3:]]),
    "a line twice": partial(lines, lambda rows: [*rows, rows[-1]]),
    "no first line": partial(lines, lambda rows: rows[1:]),
    "a blank line": partial(lines, lambda rows: [rows[0], b"\n", *rows[1:]]),
    "an index that is none": partial(sealed_row, lambda row: row.update(index=-1)),
    "an index beyond the items": partial(sealed_row, lambda row: row.update(index=10**6)),
    "an index that is true": partial(sealed_row, lambda row: row.update(index=True)),
    "an unknown item": partial(sealed_row, lambda row: row.update(id="nobody")),
    "no item": partial(sealed_row, lambda row: row.pop("id")),
    "another group": partial(sealed_row, lambda row: row.update(group="nobody's")),
    "a negative count": partial(sealed_row, lambda row: row.update(tokens=-1)),
    "truncated by a half": partial(sealed_row, lambda row: row.update(truncated=0.5)),
    "a sealed line twice": partial(sealed_rows, lambda rows: rows.append(dict(rows[2]))),
    "no object": partial(sealed_rows, lambda rows: rows[2].clear()),
}
OF_CHOICES: dict[str, Damage] = {
    "acc of 7.5": partial(sealed_row, lambda row: row.update(acc=7.5, correct=7.5)),
    "acc alone": partial(sealed_row, lambda row: row.update(acc=1 - row["acc"])),
    "acc and correct": partial(sealed_row, lambda row: row.update(acc=1 - row["acc"], correct=1 - row["correct"])),
    "another answer": partial(sealed_row, lambda row: row.update(answer=1 - row["answer"])),
    "an answer beyond the choices": partial(sealed_row, lambda row: row.update(answer=9)),
    "a likelihood above 1": partial(sealed_row, lambda row: row.update(loglikelihoods=[3.0, -1.0])),
    "a likelihood of none": partial(sealed_row, lambda row: row.update(loglikelihoods=[float("nan"), -1.0])),
    "a likelihood less": partial(sealed_row, lambda row: row["loglikelihoods"].pop()),
    "likelihoods exchanged": partial(sealed_row, lambda row: row["loglikelihoods"].reverse()),
    "a choice of no token": partial(sealed_row, lambda row: row.update(tokens=[0, 1])),
}
OF_TEXTS: dict[str, Damage] = {
    "another verdict": partial(sealed_row, lambda row: row.update(correct=not row["correct"])),
    "both verdicts": partial(sealed_row, lambda row: row.update(correct=True, exact_match=True)),
    "another gold": partial(sealed_row, lambda row: row.update(gold=row["answer"], correct=True, exact_match=True)),
}
OF_LOSSES: dict[str, Damage] = {
    "a negative loss": partial(sealed_row, lambda row: row.update(loss=-1.0)),
    "an infinite loss": partial(sealed_row, lambda row: row.update(loss=float("inf"))),
    "a loss of text": partial(sealed_row, lambda row: row.update(loss="1.0")),
    "another number of bytes": partial(sealed_row, lambda row: row.update(bytes=row["bytes"] + 1)),
}


def tensors_of(change: Callable[[Any], Any], path: Path, other: Path) -> None:
    def all_of_them(tensors: dict[str, Any], own: dict[str, Any]) -> None:
        for name in tensors:
            tensors[name] = change(tensors[name]).contiguous()

    rewrite_tensors(path, all_of_them)


def content_of(change: Callable[[Any], object], path: Path, other: Path) -> None:
    rewrite_json(path, lambda whole: change(whole["content"]))


OF_TENSORS: dict[str, Damage] = {
    "of another type": partial(tensors_of, lambda tensor: tensor.double()),
    "of another shape": partial(tensors_of, lambda tensor: tensor[:1] if tensor.dim() else tensor[None]),
    "no number": partial(tensors_of, lambda tensor: tensor.double() * float("nan")),
}
OF_PAIRS: dict[str, Damage] = {
    "more ran than was chosen": partial(content_of, lambda tables: tables.update(executed=tables["chosen"][::-1])),
    "a layer less": partial(content_of, lambda tables: tables["chosen"][0].pop()),
    "no tokens": partial(content_of, lambda tables: tables.update(tokens=[0, 0])),
    "no table": partial(content_of, lambda tables: tables.clear()),
}


def is_kept(path: Path) -> bool:
    """Whether a later step reads the file: all of them but records, which only people read, and locks."""
    return path.is_file() and path.name != "record.json" and not path.name.startswith(".")


def damages(path: Path) -> dict[str, Damage]:
    """What is tried on a file."""
    found = {**ANY, **SEALED}
    if path.suffix == ".safetensors":
        found |= OF_TENSORS
    if path.name.endswith(".pairs.json"):
        found |= OF_PAIRS
    if path.suffix == ".jsonl":
        found |= OF_LINES
        kinds = {"mini-piqa": OF_CHOICES, "mini-gsm8k": OF_TEXTS, "mini-perplexity": OF_LOSSES}
        found |= kinds[path.name.partition("@")[0]]
    return found


class Place:
    """A model, a text, and a finished run with everything that it left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_folder(folder / "model", max_position_embeddings=1024)
        self.text = tiny_text(folder)
        self.other, self.out = folder / "other", folder / "runs"
        assert main(self.command(self.other, seed=1, model=tiny_folder(folder / "second", seed=1))) == 0
        assert main(self.command(self.out)) == 0
        self.whole = self.outcome(self.out)
        self.kept = [path.relative_to(self.out) for path in sorted(self.out.rglob("*")) if is_kept(path)]

    def command(self, out: Path, *, seed: int = 0, model: Path | None = None) -> list[str]:
        asked = {
            "method": METHOD,
            "expert-bits": 2,
            "model": model or self.model,
            "calibration": self.text,
            "samples": 4,
            "length": 32,
            "tasks": "mini-piqa,mini-gsm8k,mini-perplexity",
            "limit": 3,
            "seed": seed,
            "out": out,
        }
        return ["run", "--quiet", *(word for name, value in asked.items() for word in (f"--{name}", str(value)))]

    @staticmethod
    def outcome(out: Path) -> tuple[Any, dict[str, bytes]]:
        """The record without its times, and all samples and pairs."""
        (path,) = out.glob("*odp*/record.json")
        record = json.loads(path.read_text())
        for name in ("stages", "created", "digest", "command"):
            del record[name]
        for result in record["results"]:
            del result["seconds"]
        kept = [*out.glob("*/*.jsonl"), *out.glob("*/*.pairs.json")]
        return record, {str(path.relative_to(out)): path.read_bytes() for path in kept}

    def counterpart(self, name: Path) -> Path:
        """The same file of the other run; its folder is called after other digests."""
        alike = [p for p in sorted(self.other.rglob(name.name)) if p.parent.name[:15] == name.parent.name[:15]]
        return (alike or sorted(self.other.rglob(f"*{name.suffix}")))[0]

    def try_out(self, name: Path, damage: Damage, capsys: pytest.CaptureFixture[str], fresh: Path) -> tuple[str, str]:
        """Damages a copy of one file and runs again; whether it was refused or made anew, and what was said."""
        shutil.copytree(self.out, fresh, symlinks=True)
        damage(fresh / name, self.counterpart(name))
        capsys.readouterr()
        code = main(self.command(fresh))
        said = capsys.readouterr().err
        assert code in (0, 2), said
        assert "Traceback" not in said
        if code:
            assert name.name in said.splitlines()[-1] and said.count("\n") <= 2, said  # a line may say what was tried
            return "refused", said
        record, files = self.outcome(fresh)
        assert record == self.whole[0], said
        assert files == self.whole[1], said
        return "anew", said


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def tried(place: Place, every: int) -> list[tuple[Path, str, Damage]]:
    """All damages of all files, or one in `every`, so that each file and each kind of damage has its turn."""
    everything = [(name, what, damage) for name in place.kept for what, damage in damages(place.out / name).items()]
    return everything[::every]


def report(place: Place, cases: list[tuple[Path, str, Damage]], capsys: pytest.CaptureFixture[str], at: Path) -> str:
    """Tries the cases; a line for each that went wrong, then the counts."""
    counts, wrong = {"refused": 0, "anew": 0}, []
    for number, (name, what, damage) in enumerate(cases):
        fresh = at / str(number)
        try:
            found, said = place.try_out(name, damage, capsys, fresh)
            if found == "anew" and not said.strip():
                same = (fresh / name).is_file() and (fresh / name).read_bytes() == (place.out / name).read_bytes()
                if not same:
                    wrong.append(f"{name}, {what}: nothing was said")
            counts[found] += 1
        except AssertionError as error:
            wrong.append(f"{name}, {what}: {str(error)[:200]}")
        shutil.rmtree(fresh, ignore_errors=True)
    return "\n".join([*wrong, f"{len(cases)} tried, {counts}, {len(wrong)} wrong"])


def test_a_damage_to_any_file_is_refused_or_made_anew(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = report(place, tried(place, 31), capsys, tmp_path)
    assert told.endswith(" 0 wrong"), told


@pytest.mark.slow
def test_every_damage_to_every_file_is_refused_or_made_anew(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cases = tried(place, 1)
    told = report(place, cases, capsys, tmp_path)
    assert told.endswith(" 0 wrong"), told
    assert len(cases) > 300


@pytest.mark.parametrize(
    "writes", [9, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_run_with_a_policy_killed_again_and_again_ends_as_an_uninterrupted_one(
    place: Place, writes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each time after so many writes, in the middle of the next one; samples, pairs and record are those of no kill."""
    whole, lines = sealed.write_whole, sealed.Lines._write
    left = [0]

    def counted(torn: Callable[[], object]) -> None:
        left[0] -= 1
        if left[0] < 0:
            torn()
            raise KeyboardInterrupt

    def write_whole(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        counted(lambda: path.with_name(f".{path.name}.torn").write_bytes(content[: len(content) // 2]))
        whole(path, content)

    def write_lines(self: sealed.Lines, rows: Any, mode: str, last: str) -> None:
        rows = list(rows)

        def torn() -> None:
            lines(self, rows, mode, last)
            data = self.path.read_bytes()
            self.path.write_bytes(data[:-7])

        counted(torn)
        lines(self, rows, mode, last)

    monkeypatch.setattr(sealed, "write_whole", write_whole)
    monkeypatch.setattr(sealed.Lines, "_write", write_lines)
    kills = 0
    while True:
        left[0] = writes
        code = main(place.command(tmp_path / "runs"))
        if code == 0:
            break
        assert code == 130
        kills += 1
        assert kills < 200
    assert kills >= 2
    assert place.outcome(tmp_path / "runs") == place.whole
