"""What can be named at the shell: the tasks, the models, and the description of any one of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcbench.bounds import alternatives, bounds_in, hints_of
from mcbench.composition import METHODS, defaults, make, named, split
from mcbench.datasets import Found, look
from mcbench.declarations import require_declarations, require_task_declarations
from mcbench.errors import BadInput, UnknownName
from mcbench.method import Method, decisions
from mcbench.progress import track
from mcbench.registry import Registry, looks_like_path, suggest

if TYPE_CHECKING:
    from mcbench.task import Task

LONGEST = 10_000  # characters of a list of tasks

TASKS: Registry[Task] = Registry("task", "mcbench.tasks", "mcbench.task:Task")


def models() -> list[str]:
    """The models that come with the package; a folder or a hub id may be named as well."""
    from mcbench.reference import model_names

    return model_names()


def select_tasks(names: str, *, registered: bool = False) -> tuple[Task, ...]:
    """The tasks behind a comma-separated list of tasks and suites, each once, in the order asked for.

    registered: for a list that was read from a file, in which a name is looked up and never taken for a path.

    A task may set its parameters, as in `wikitext2(window=1024)`. Raises UnknownName for a name that is neither, with
    the nearest one, and BadInput for a parameter that cannot be and for the same task with two sets of parameters.
    """
    if len(names) > LONGEST:
        raise BadInput(f"a list of tasks has at most {LONGEST:,} characters, not {len(names):,}")
    suites: dict[str, list[str]] = defaults()["suites"]
    asked = [piece.strip() for piece in split(names, ",")]
    if not all(asked):
        raise BadInput(f"the task list {names!r} has an empty name")
    known = {*suites, *TASKS.names()}
    for piece in asked:
        name = piece.partition("(")[0].strip()
        if name not in known and (registered or not looks_like_path(name)):
            raise UnknownName(f"no task or suite is called {name!r}; {suggest(name, known)}")
    found = {task_with(*named(inner)): None for piece in asked for inner in suites.get(piece, [piece])}
    twice = [name for name, n in Counter(task.name for task in found).items() if n > 1]
    if twice:
        raise BadInput(f"{twice[0]!r} is asked for in two ways; run them one after the other")
    return tuple(found)


def task_with(name: str, settings: Mapping[str, Any]) -> Task:
    """A task with some of its parameters set; UnknownName and BadInput as `select_tasks`."""
    if name in defaults()["suites"]:
        raise BadInput(f"{name!r} is a suite and takes no parameters; name its tasks")
    from mcbench.task import Task

    kind = TASKS.get(name)
    require_task_declarations(kind, Task, name)
    return make(kind, name, settings)


def served(folder: Path) -> list[tuple[str, tuple[Found, ...]]]:
    """Every task that asks published sets, with what the folder alone has of each of them.

    Raises BadInput where there is no such folder.
    """
    looked = functools.cache(look)  # several tasks ask the same split
    asked = [(name, TASKS.get(name)().sets()) for name in TASKS.names()]
    asked = [(name, sets) for name, sets in asked if sets]
    return [(name, tuple(looked(*one, folder) for one in sets)) for name, sets in track(asked, len(asked), "data")]


def describe(name: str) -> str:
    """The docstring, decisions or metric, parameters with defaults, and source of a method, task or alias."""
    if name in defaults()["aliases"]:
        return f"{name} is short for {defaults()['aliases'][name]}"
    kind = _find(name)
    lines = [f"{name}: {inspect.getdoc(inspect.getmodule(kind)) or ''}".strip(), "", inspect.getdoc(kind) or ""]
    if issubclass(kind, Method):
        require_declarations(kind, name)
        lines += ["", f"decides: {', '.join(decisions(kind))}", f"needs: {', '.join(_needs(kind)) or 'nothing'}"]
        if "route" in decisions(kind):
            policy = kind()
            after = "does not depend" if policy.causal else "depends"
            lines += [
                f"sees: {', '.join(('routing', *policy.sees))}",
                f"causal: a token's choice {after} on later tokens",
            ]
    else:
        lines += ["", f"metric: {kind.metric}", f"counterpart: {kind.counterpart or 'none, it is the original'}"]
    fields = [f for f in dataclasses.fields(kind) if f.init]
    if fields:
        lines += ["", "parameters:", *(f"  {f.name}: {_type(kind, f)}" for f in fields)]
    paper = getattr(kind, "paper", "")
    return "\n".join([*lines, *(["", f"paper: {paper}"] if paper else [])])


def _find(name: str) -> type[Method] | type[Task]:
    if looks_like_path(name):
        try:
            return METHODS.get(name)
        except BadInput:
            return TASKS.get(name)
    if name in METHODS.names():
        return METHODS.get(name)
    if name in TASKS.names():
        return TASKS.get(name)
    known = [*METHODS.names(), *TASKS.names(), *defaults()["aliases"]]
    raise UnknownName(f"no method or task is called {name!r}; {suggest(name, known)}")


def _needs(kind: type[Method]) -> tuple[str, ...]:
    try:
        needs = kind().needs
    except Exception as error:  # a contributed method that cannot be made with its defaults
        raise BadInput(f"{kind.__name__} cannot be made with its defaults: {error}") from error
    return needs + (("hessian",) if kind.needs_hessian else ())


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)


def _type(kind: type, field: dataclasses.Field[Any]) -> str:
    """The types that a field allows, its default, and its bounds where it has some."""
    hint = hints_of(kind)[field.name]
    types = " | ".join(_word(each) for each in alternatives(hint))
    bounds = bounds_in(hint)
    return f"{types} = {_default(field)}{f', {bounds}' if bounds else ''}"


def _word(kind: Any) -> str:
    if kind is type(None):
        return "None"
    return kind.__name__ if type(kind) is type else str(kind).removeprefix("typing.")
