"""Finds contributions: the file name is the registered name, and a file is imported only when it is asked for.

A name can come from three places: a file in `methods/` or `tasks/`, a path (`./mine.py`), or an installed package that
declares an entry point in the group `mcbench.methods` or `mcbench.tasks`. Listing looks at names and metadata only.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from mcbench.errors import BadInput, NotInstalled, UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """The contributions of one kind; `base` ("module:class") is the class each of them subclasses once per file."""

    def __init__(self, kind: str, package: str, base: str) -> None:
        self.kind, self.package, self._base = kind, package, base

    def names(self) -> list[str]:
        """Every registered name, sorted, without importing any contribution."""
        return sorted({*self._files(), *self._entry_points()})

    def get(self, name: str) -> type[T]:
        """The class called `name`, or defined in the file that `name` points to.

        Raises UnknownName for a name or file that does not exist, BadInput for a file that does not define exactly
        one contribution, NotInstalled where it needs an absent package.
        """
        if looks_like_path(name):
            return self._single_class(_import_path(Path(name), self.kind), name)
        files = self._files()
        if name in files:
            return self._single_class(_import_named(f"{self.package}.{files[name].stem}", name), str(files[name]))
        if name in self._entry_points():
            return self._single_class(_import_named(self._entry_points()[name], name), name)
        raise UnknownName(f"no {self.kind} is called {name!r}; {suggest(name, self.names())}")

    def registered(self, name: str) -> type[T]:
        """The class of that registered name: for a name that was read from a file, which never leads to another file.

        Raises UnknownName for whatever is not registered, a path included; NotInstalled as `get`.
        """
        if name not in self.names():
            raise UnknownName(f"no {self.kind} is called {name!r}; {suggest(name, self.names())}")
        return self.get(name)

    def source(self, name: str) -> Path | None:
        """The file behind a name, where there is one in `methods/` or `tasks/`."""
        return Path(name) if looks_like_path(name) else self._files().get(name)

    @functools.cache  # noqa: B019 - one registry of each kind lives as long as the process
    def _files(self) -> dict[str, Path]:
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise BadInput(f"{self.package} cannot be found: run `pip install -e .` in the checkout first")
        files = (f for folder in spec.submodule_search_locations for f in Path(folder).glob("*.py"))
        return {f.stem.replace("_", "-"): f for f in files if not f.stem.startswith("_")}

    @functools.cache  # noqa: B019
    def _entry_points(self) -> dict[str, str]:
        return {point.name: point.module for point in importlib.metadata.entry_points(group=self.package)}

    def _single_class(self, module: ModuleType, where: str) -> type[T]:
        base_module, base_name = self._base.split(":")
        base = getattr(importlib.import_module(base_module), base_name)
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
        ]
        if len(found) != 1:
            names = ", ".join(c.__name__ for c in found) or "none"
            raise BadInput(f"{where} must define exactly one subclass of {base_name}; it defines {names}")
        return found[0]


def looks_like_path(name: str) -> bool:
    """Whether a name is meant as a file: it ends in .py or holds a path separator."""
    return name.endswith(".py") or "/" in name


def suggest(name: str, known: Iterable[str]) -> str:
    """The second half of an error about a misspelt name: the nearest one, then all that are known."""
    known = sorted(known)
    if not known:
        return "it has none"
    listed = ", ".join(known)
    near = nearest(name, known)
    return f"did you mean {near!r}? (known: {listed})" if near else f"known are {listed}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a misspelt one; empty where none is."""
    known = list(known)
    name = name[:100]  # comparing takes the product of the lengths
    alike = [each for each in known if each.lower() == name.lower()]
    return next(iter(alike or difflib.get_close_matches(name, known, n=1)), "")


def names_in(text: str, what: str) -> list[str]:
    """The names in a list by commas; BadInput, which says what it is a list of, where one of them is empty."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise BadInput(f"the {what} {text!r} has an empty name")
    return names


def _import_named(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("mcbench"):
            raise
        raise NotInstalled(f"{name!r} needs the package {error.name!r}, which is not installed") from error


def _import_path(path: Path, kind: str) -> ModuleType:
    if not path.is_file():
        raise UnknownName(f"no {kind} file at {str(path)!r}")
    digest = hashlib.sha256(str(path.resolve()).encode() + path.read_bytes()).hexdigest()[:8]
    module_name = f"mcbench_contributed_{path.stem}_{digest}"
    if module_name in sys.modules:  # the same file is the same class, so that two of its methods can be equal
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up while the class is being made
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, KeyboardInterrupt):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())  # SystemExit and its like are no import either
        raise BadInput(f"{str(path)!r} cannot be imported: {reason}") from error
    return module
