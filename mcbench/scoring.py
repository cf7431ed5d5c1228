"""Runs the programs that a model wrote earlier, perhaps on another machine, and scores them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mcbench.catalogue import TASKS, task_with
from mcbench.errors import BadInput
from mcbench.files import require_file
from mcbench.kinds import CodeTask
from mcbench.locks import in_turn
from mcbench.task import COMPLETIONS

if TYPE_CHECKING:
    from mcbench.evaluation import LanguageModel
    from mcbench.task import Scores


LONGEST_LINE = 2**20  # bytes of the line that says whose the programs are


def score(path: str | Path, *, task: str = "", allow_code_execution: bool = False) -> Scores:
    """The scores of the programs in a `*.completions.jsonl`, as the run that wrote it would have found them.

    The samples are written beside it, where the run that wrote the file looks for them: the same run without
    `--no-execution` then has nothing left to generate. `task` names the file of a task that does not come with the
    package, such as ./mine.py. Raises BadInput for a file that is no such thing, is not
    complete, or belongs to another version of the task or of its data.
    """
    path = Path(path)
    if not path.name.endswith(COMPLETIONS):
        raise BadInput(f"{str(path)!r} holds no programs: name a file that ends in {COMPLETIONS}")
    owner = _owner(path)
    name = str(owner["protocol"]).split("@")[0]
    if not task and name not in TASKS.names():
        raise BadInput(
            f"{str(path)!r} was written for {name!r}, which is no task that runs programs here: name the file of "
            "a task of yours with --task, such as --task ./mine.py"
        )
    if not issubclass(TASKS.get(task or name), CodeTask):
        raise BadInput(f"{str(path)!r} was written for {name!r}, and {task or name!r} is no task that runs programs")
    found = task_with(task or name, owner["parameters"])
    if found.protocol != owner["protocol"]:
        raise BadInput(
            f"{str(path)!r} was written for {owner['protocol']}, and here the task is {found.protocol}: "
            "another version, or other data"
        )
    sink = path.with_name(f"{path.name.removesuffix(COMPLETIONS)}.jsonl")
    writer = cast("LanguageModel", _Writer(str(owner["model"]), path))
    with in_turn(path.with_name(".lock")):  # the run that writes there, or another score
        return found.evaluate(writer, limit=owner["limit"], sink=sink, allow_code_execution=allow_code_execution)


@dataclass(frozen=True)
class _Writer:
    """Stands for the model that wrote the file; it writes nothing more."""

    fingerprint: str
    path: Path
    tokenizer: ClassVar[Any] = SimpleNamespace(eos_token=None)

    def give_up(self, names: Sequence[str]) -> None:
        """It had done so already."""

    def generate_batches(self, prompts: Sequence[Any], sampling: Any, done: Collection[int]) -> Iterator[Any]:
        if len(done) < len(prompts):
            raise BadInput(
                f"{str(self.path)!r} holds programs for {len(done)} of {len(prompts)} problems: "
                "let the run that writes it go on first"
            )
        yield from ()


def _owner(path: Path) -> dict[str, Any]:
    """The first line of a file of programs."""
    try:
        require_file(path, "the file of programs")
        with path.open("rb") as file:
            owner = json.loads(file.readline(LONGEST_LINE))
    except OSError as error:
        raise BadInput(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        owner = None
    wanted = {"schema": int, "protocol": str, "model": str, "parameters": dict}
    if not isinstance(owner, dict) or not all(isinstance(owner.get(key), kind) for key, kind in wanted.items()):
        raise BadInput(f"{str(path)!r} does not begin as a file of programs does")
    limit = owner.get("limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise BadInput(f"{str(path)!r} does not begin as a file of programs does")
    return owner
