"""Tests in one process ask a program in another and get plain values back: the program has no part in its verdict.

The tests hold stand-ins for what the program defines. A call goes to the program as plain values and comes back as
plain values of exactly known types, which the tests compare with operators of their own. Nothing is unpickled, and no
operator of an object that the program made decides anything: such an object stays where it is, and its attributes,
methods, items and iteration are asked for one by one.

Containers keep their identity within a call: what the program changes in an argument is changed in the tests' own
object, and an argument that comes back is that object.

This file also runs inside the sandbox, so it imports the standard library only.
"""

from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import io
import json
import os
import secrets
import struct
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

Status = Literal["passed", "failed", "timeout", "memory", "syntax", "killed"]

MOST_BYTES = 16 << 20  # of one message


class Verdict(NamedTuple):
    """What the tests found; `gone` where the program stopped answering, which how it ended explains."""

    status: Status
    message: str
    gone: bool = False


class Broken(BaseException):
    """The other side sends what no honest one would, or nothing more; no `except Exception` of a test catches it."""

    def __init__(self, message: str, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class _Left(SystemExit):
    """The program asked to leave while it was being called."""


# -- the tests' side


def judge(prompt: str, tests: str, read: int, write: int) -> Verdict:
    """Runs tests on the answers of the program at the other end of two pipes.

    The tests see what the prompt defines before its last statement, which is the one that the program completes. Every
    other name that they use and do not define is the program's.
    """
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    names = module.__dict__
    names["__builtins__"] = dict(builtins.__dict__)
    head, completed, is_function = split_prompt(prompt)
    try:
        exec(compile(head, "prompt", "exec"), names)  # noqa: S102 - confined, and part of the task
        code = compile(tests, "tests", "exec")
    except Exception as error:
        return Verdict("failed", f"the task's own code: {type(error).__name__}: {error}"[:500])
    shared = {name for name, value in names.items() if isinstance(value, type) and value.__module__ == "__main__"}
    program = Exchange(read, write, names, shared, whole=False)
    program.plain = is_function
    try:
        program.send({"shared": sorted(shared)})
        ended = program.receive().get("ended")
        if ended is not None:
            return _ended(ended)
        names["__builtins__"] = _Names(program, completed)
        if completed in builtins.__dict__:
            names[completed] = program.ask("name", completed)
        exec(code, names)  # noqa: S102 - confined, and part of the task
    except BaseException as error:
        verdict = _raised(error)
    else:
        verdict = Verdict("passed", "")
    # whatever the tests made of it: who stopped answering has not passed
    return _raised(program.broken) if program.broken else verdict


class Split(NamedTuple):
    """A prompt: its whole statements before the one to complete, the name which that one defines, and what it is."""

    head: str
    name: str
    is_function: bool


def split_prompt(prompt: str) -> Split:
    """What a prompt defines itself, and what it leaves to the program; the name is empty where there is none."""
    lines = prompt.splitlines(keepends=True)
    for cut in range(len(lines), -1, -1):
        try:
            found = ast.parse("".join(lines[:cut])).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if cut == len(lines) and found and not isinstance(found[-1], ast.Import | ast.ImportFrom):
            last = found[-1]
            first = min([last.lineno, *(each.lineno for each in getattr(last, "decorator_list", ()))])
            is_function = isinstance(last, ast.FunctionDef | ast.AsyncFunctionDef)
            return Split("".join(lines[: first - 1]), str(getattr(last, "name", "")), is_function)
        rest = "".join(lines[cut:]).split("(")[0].split(":")[0].split()
        return Split("".join(lines[:cut]), rest[-1] if rest else "", "def" in rest)
    return Split("", "", False)


class _Names(dict[str, Any]):
    """The built-in names of the tests, which end in those of the program.

    A module of the standard library that the tests use and only the program imports is the tests' own copy.
    """

    def __init__(self, program: Exchange, completed: str) -> None:
        super().__init__(builtins.__dict__)
        self._program, self._completed = program, completed

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        if name in sys.stdlib_module_names and name != self._completed:
            return importlib.import_module(name)
        try:
            return self._program.ask("name", name)
        except NameError:
            raise KeyError(name) from None


def _ended(said: Any) -> Verdict:
    """The verdict on a program that says it has ended before it could be asked: it may choose how it failed."""
    statuses: dict[str, Status] = {"syntax": "syntax", "memory": "memory"}
    status, message = said if type(said) is list and len(said) == 2 else ("", "")
    return Verdict(statuses.get(str(status), "failed"), str(message)[:500])


def _raised(error: BaseException) -> Verdict:
    if isinstance(error, Broken):
        return Verdict("failed", str(error)[:500], error.gone)
    if isinstance(error, MemoryError):
        return Verdict("memory", "")
    if isinstance(error, SystemExit) and not isinstance(error, _Left) and error.code in (None, 0, False):
        return Verdict("passed", "")  # unittest.main() of the tests
    return Verdict("failed", f"{type(error).__name__}: {_text(error)}"[:500])


# -- the program's side


def answer(program: str, read: int, write: int) -> None:
    """Runs a program as the module `__main__`, then answers questions about what it has defined."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program"]
    for name in ("exit", "quit"):  # which the `site` module would have defined
        builtins.__dict__.setdefault(name, sys.exit)
    tests = Exchange(read, write, module.__dict__, set(), whole=True)
    itself, exit_now = os.getpid(), os._exit
    try:
        ended = _run(program, module)
    finally:
        if os.getpid() != itself:
            exit_now(0)  # a child that the program has forked
    with contextlib.suppress(Broken):
        tests.shared = set(tests.receive()["shared"])
        tests.send({"ended": ended})
        while True:
            tests.serve(tests.receive())


def _run(program: str, module: types.ModuleType) -> list[str] | None:
    """Why a program came to no end; None where it did."""
    try:
        code = compile(program, "program", "exec")
    except (SyntaxError, ValueError) as error:
        return ["syntax", f"{type(error).__name__}: {error}"]
    except MemoryError:
        return ["memory", ""]
    except RecursionError as error:
        return ["failed", f"RecursionError: {error}"]
    try:
        exec(code, module.__dict__)  # noqa: S102 - what a sandbox is for
    except MemoryError:
        module.__dict__.clear()  # room for what is said of it
        return ["memory", ""]
    except SystemExit as error:
        # as at a shell: leaving with 0 at its end is no failure, and what it has defined can be asked for
        return None if error.code in (None, 0, False) else ["failed", f"SystemExit: {error}"]
    except BaseException as error:
        return ["failed", f"{type(error).__name__}: {_text(error)}"]
    return None


# -- what both sides do


class _Heap:
    """The containers of one call by number; the same numbers on both sides."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}  # id of an object -> its number
        self.sent: dict[int, list[Any]] = {}  # what each container that can change held when it was last sent

    def add(self, value: Any) -> None:
        """Gives a container the next number."""
        self.put(len(self.objects), value)

    def put(self, number: int, value: Any) -> None:
        """Gives a container a number; it is kept, so that no other object gets its id."""
        while len(self.objects) <= number:
            self.objects.append(_ABSENT)
        self.objects[number] = value
        self.numbers[id(value)] = number


class Exchange:
    """One side of the conversation: its pipes, what it has handed out and what it has been handed.

    `names` are those of its module. Instances of the classes that both sides define alike, by their names in `shared`,
    travel as their attributes. The program's side is `whole`: with what it hands out everything may be done. The tests'
    side hands out functions and iterators, to be called and advanced. `plain`: the program completes a function, whose
    results are asked for no method that plain values have; one that the program wrote would judge itself.
    """

    plain = False

    def __init__(self, read: int, write: int, names: dict[str, Any], shared: set[str], whole: bool) -> None:
        self._read, self._write, self._names, self.shared, self._open = read, write, names, shared, whole
        self._exports: list[Any] = []
        self._exported: dict[int, int] = {}  # id -> place
        self._received: dict[int, Any] = {}
        self._raised: dict[tuple[str, ...], type[BaseException]] = {}
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self.broken: Broken | None = None

    def ask(self, operation: str, target: str | int, *values: Any) -> Any:
        """What the other side answers; raises what it raised, and Broken where it answers no more."""
        with self._lock:
            if self.broken:
                raise self.broken
            token, heap = secrets.token_hex(8), _Heap()
            cells, entries = self._encode(values, heap)
            capture = not self._open and sys.stdout is not sys.__stdout__
            asked = {"ask": operation, "target": target, "token": token, "capture": capture}
            self.send({**asked, "values": cells, "heap": entries})
            while True:
                message = self.receive()
                if "ask" in message:
                    self.serve(message)
                    continue
                with self._strictly():
                    if message["token"] != token:
                        raise ValueError("it belongs to another question")
                    values = tuple(self._decode(message["values"], message["heap"], heap))
                    raised, printed = message["raised"], message["printed"]
                    error = None if raised is None else self._exception(raised, values)
                    result = None if error else values[0]
                if capture and type(printed) is str:
                    sys.stdout.write(printed)
                if isinstance(error, StopIteration) and operation != "next":
                    # it would end a loop of the tests that calls, as a pass does
                    raise RuntimeError("the program raised StopIteration") from error
                if error:
                    raise error
                return result

    def serve(self, message: dict[str, Any]) -> None:
        """Answers one question of the other side."""
        with self._strictly():
            heap, capture = _Heap(), self._open and message["capture"] is True
            operation, target, token = message["ask"], message["target"], message["token"]
            values = list(self._decode(message["values"], message["heap"], heap))
        raised: list[str] | None = None
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed) if capture else contextlib.nullcontext():
                value = self._do(operation, target, values)
            cells, entries = self._encode([value], heap)
        except Broken:
            raise
        except BaseException as error:
            raised = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, BaseException)]
            try:
                cells, entries = self._encode(BaseException.__dict__["args"].__get__(error), heap, plainly=True)
            except BaseException:
                cells, entries = [_text(error)], []
        if os.getpid() != self._owner:
            os._exit(0)  # a child that the program has forked
        self.send({"token": token, "raised": raised, "values": cells, "heap": entries, "printed": printed.getvalue()})

    def _do(self, operation: str, target: Any, values: list[Any]) -> Any:
        if operation == "name" and self._open:
            if target not in self._names:
                raise NameError(f"name {target!r} is not defined")
            return self._names[target]
        thing = self._exports[target]
        if operation == "call":
            return thing(*values[0], **values[1])
        if operation == "next":
            return next(thing)
        if not self._open:
            raise TypeError("a function of the tests can be called, and no more")
        return _OPERATIONS[operation](thing, *values)

    # -- messages: a length and JSON

    def send(self, message: dict[str, Any]) -> None:
        """One message; that nobody reads it, the reader of the answer will notice."""
        data = json.dumps(message, check_circular=False).encode()
        if len(data) > MOST_BYTES:
            if "ask" in message:
                raise ValueError(f"more than the {MOST_BYTES} bytes that a message holds")
            reason = f"an answer of more than {MOST_BYTES} bytes"
            short = {"raised": ["OverflowError"], "values": [reason], "heap": [], "printed": ""}
            data = json.dumps({**message, **short}).encode()
        rest = memoryview(struct.pack(">I", len(data)) + data)
        with contextlib.suppress(BrokenPipeError):
            while rest:
                rest = rest[os.write(self._write, rest) :]

    def receive(self) -> dict[str, Any]:
        """The next message; Broken where there is none, or it is none."""
        (length,) = struct.unpack(">I", self._exactly(4))
        if length > MOST_BYTES:
            raise self._break("its answer is too long")
        data = self._exactly(length)
        with self._strictly():
            message = json.loads(data)
            _require(type(message) is dict)
        return dict(message)

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            try:
                part = os.read(self._read, min(length, 1 << 20))
            except OSError:
                part = b""
            if not part:
                raise self._break("it stopped answering", gone=True)
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _break(self, message: str, gone: bool = False) -> Broken:
        self.broken = self.broken or Broken(message, gone)
        return self.broken

    @contextlib.contextmanager
    def _strictly(self) -> Iterator[None]:
        """What goes wrong with data of the other side inside the block ends the conversation."""
        try:
            yield
        except Exception as error:
            raise self._break(f"its answer cannot be read: {type(error).__name__}: {error}") from None

    # -- values as JSON

    def _encode(self, roots: Sequence[Any], heap: _Heap, plainly: bool = False) -> tuple[list[Any], list[Any]]:
        """Cells for the values, and entries for all containers that they hold or that have changed since.

        Entries of immutable containers follow those of what they hold. `plainly`: what is not plain becomes its text.
        """
        entries: list[Any] = []
        seen: set[int] = set()
        # each container twice: to find what it holds, then to write it
        stack: list[tuple[Any, Any]] = [(v, None) for v in (*roots, *(heap.objects[n] for n in heap.sent))][::-1]
        while stack:
            value, parts = stack.pop()
            if parts:
                kind, *content = parts
                entry = [kind, *([self._cell(v, heap, plainly) for v in part] for part in content)]
                number = heap.numbers[id(value)]
                if _changes(kind):
                    if heap.sent.get(number) == entry:
                        continue
                    heap.sent[number] = entry
                entries.append([number, *entry])
                continue
            number = heap.numbers.get(id(value), -1)
            if id(value) in seen or (number >= 0 and number not in heap.sent):
                continue  # what cannot change has not
            parts = self._parts(value)
            if parts is None:
                continue
            seen.add(id(value))
            if number < 0:
                heap.add(value)
            stack.append((value, parts))
            stack += [(v, None) for part in parts[1:] for v in part if type(v) not in _SCALARS]
        return [self._cell(value, heap, plainly) for value in roots], entries

    def _parts(self, value: Any) -> tuple[Any, ...] | None:
        """The name of a container's type and lists of what it holds; None for what is no container.

        What the program made of a subclass is taken for its base: its own operators stay behind.
        """
        kind = type(value)
        name = _CONTAINERS.get(kind)
        if name is None and issubclass(kind, tuple):
            if self._shares(kind):
                return f"record {kind.__name__}", list(tuple.__iter__(value))
            fields = getattr(kind, "_fields", None)
            if type(fields) is tuple and len(fields) == tuple.__len__(value) and all(type(f) is str for f in fields):
                return "named tuple", [kind.__name__, *fields], list(tuple.__iter__(value))
        if name is None and self._open and not issubclass(kind, enum.Enum):
            name = next((found for base, found in _CONTAINERS.items() if issubclass(kind, base)), None)
        if name:
            return name, *_TAKEN_APART[name](value)
        if self._shares(kind) and not issubclass(kind, (enum.Enum, *_CONTAINERS, *_SCALARS)):
            attributes = _attributes(value)
            return f"instance {kind.__name__}", list(attributes), list(attributes.values())
        return None

    def _shares(self, kind: type) -> bool:
        return kind.__name__ in self.shared and self._names.get(kind.__name__) is kind

    def _cell(self, value: Any, heap: _Heap, plainly: bool) -> Any:
        """A value in its place: itself, or a list that says what it is."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        if issubclass(kind, enum.Enum) and self._shares(kind):
            return ["member", kind.__name__, str(object.__getattribute__(value, "_name_"))]
        base = kind if kind in _SCALARS else next((b for b in _SCALARS if self._open and issubclass(kind, b)), None)
        if base is int:
            value = int.__int__(value)
            return value if -(1 << 53) < value < 1 << 53 else ["int", hex(value)]
        if base is float:
            return float.__float__(value)
        if base is str:
            return str.__str__(value)
        if base is complex:
            return ["complex", value.real, value.imag]
        if base is bytes:
            return ["bytes", bytes.decode(value, "latin-1")]
        number = heap.numbers.get(id(value))
        if number is not None:
            return ["@", number]
        if value is Ellipsis:
            return ["..."]
        if kind in _REMOTE.values() and object.__getattribute__(value, "_peer") is self:
            return ["yours", object.__getattribute__(value, "_number")]
        name = getattr(value, "__name__", None)
        if type(name) is str and issubclass(kind, type | types.BuiltinFunctionType):
            if (_NAMED.get(name) if self._open else builtins.__dict__.get(name)) is value:
                return ["built in", name]
            if issubclass(kind, type) and self._shares(value):
                return ["class", name]
            if issubclass(kind, type) and self._open and issubclass(value, BaseException):
                return ["exception", [each.__name__ for each in value.__mro__ if issubclass(each, BaseException)]]
        if plainly:
            return _text(value)
        advances = hasattr(kind, "__next__") and hasattr(kind, "__iter__")
        if not self._open and not advances and not callable(value):
            raise TypeError(f"tests cannot hand a {kind.__name__} to a program in another process")
        if id(value) not in self._exported:
            self._exported[id(value)] = len(self._exports)
            self._exports.append(value)
        how = "iterator" if advances else "function" if callable(value) else "object"
        if kind is types.CoroutineType:
            how = "coroutine"
        return ["mine", self._exported[id(value)], how]

    def _decode(self, cells: Any, entries: Any, heap: _Heap) -> Iterator[Any]:
        """The values of cells, after what the entries hold has been made, or changed in its place."""
        _require(type(cells) is list and type(entries) is list)
        most = len(heap.objects) + len(entries)
        filled: list[tuple[Any, list[Any]]] = []
        for number, kind, *_ in entries:
            _require(type(number) is int and 0 <= number < most and type(kind) is str)
            if _changes(kind):
                known = heap.objects[number] if number < len(heap.objects) else _ABSENT
                if known is _ABSENT:
                    known = self._empty(kind)
                    heap.put(number, known)
                _require((self._parts(known) or ("",))[0] == kind)
                filled.append((known, [number, kind]))
        for number, kind, *parts in entries:
            if not _changes(kind):
                _require(number >= len(heap.objects) or heap.objects[number] is _ABSENT)
                values = [[self._value(cell, heap) for cell in part] for part in parts]
                heap.put(number, self._record(kind, *values) if kind.startswith("record ") else _MADE[kind](*values))
        contents = {number: parts for number, _, *parts in entries}
        # attributes first: an instance may be a key
        for container, (number, kind) in sorted(filled, key=lambda one: not one[1][1].startswith("instance ")):
            parts = contents[number]
            values = [[self._value(cell, heap) for cell in part] for part in parts]
            if kind.startswith("instance ") and not self._open:
                _require(
                    not any(
                        callable(v) and callable(getattr(type(container), n, None))
                        for n, v in zip(*values, strict=True)
                    )
                )
            _FILLED[kind.split()[0]](container, *values)
            heap.sent[number] = [kind, *parts]
        for cell in cells:
            yield self._value(cell, heap)

    def _empty(self, kind: str) -> Any:
        if not kind.startswith("instance "):
            return _EMPTY[kind]()
        cls = self._class(kind.removeprefix("instance "))
        return cls.__new__(cls) if issubclass(cls, BaseException) else object.__new__(cls)

    def _record(self, kind: str, values: list[Any]) -> Any:
        cls = self._class(kind.removeprefix("record "))
        _require(issubclass(cls, tuple) and len(values) == len(getattr(cls, "_fields", values)))
        return tuple.__new__(cls, values)

    def _class(self, name: str) -> type:
        _require(name in self.shared and isinstance(self._names[name], type))
        return self._names[name]  # type: ignore[no-any-return]

    def _value(self, cell: Any, heap: _Heap) -> Any:
        if type(cell) is not list:
            _require(cell is None or type(cell) in (bool, int, float, str))
            return cell
        kind, *rest = cell
        if kind in ("@", "yours", "mine"):
            number = _natural(rest[0])
            if kind == "@":
                _require(heap.objects[number] is not _ABSENT)
                return heap.objects[number]
            if kind == "yours":
                return self._exports[number]
            if number not in self._received:
                made = _REMOTE["object" if rest[1] == "coroutine" else rest[1]](self, number)
                self._received[number] = _awaited(made) if rest[1] == "coroutine" else made
            return self._received[number]
        if kind == "built in":
            return builtins.__dict__[rest[0]] if self._open else _NAMED[rest[0]]
        if kind == "class":
            return self._class(rest[0])
        if kind == "member":
            cls = self._class(rest[0])
            _require(issubclass(cls, enum.Enum))
            return cls.__members__[rest[1]]  # type: ignore[attr-defined]
        if kind == "exception":
            return self._exception_class(rest[0])
        return _PLAIN[kind](*rest)

    def _exception(self, names: Any, values: tuple[Any, ...]) -> BaseException:
        """What the other side raised, as an exception of this one."""
        kind = self._exception_class(names)
        for arguments in (values, (", ".join(map(_text, values)),)):
            with contextlib.suppress(Exception):
                return kind(*arguments)
        return Exception(*values)

    def _exception_class(self, names: Any) -> type[BaseException]:
        """The class of these names, own first: one that both sides know, or one made up under the nearest known."""
        _require(type(names) is list and 0 < len(names) < 100 and all(type(name) is str for name in names))
        first, *rest = names
        known = self._names.get(first) if first in self.shared else builtins.__dict__.get(first)
        if isinstance(known, type) and issubclass(known, BaseException):
            # what would end the tests, ends the call
            return known if self._open or issubclass(known, Exception) else _Left
        if tuple(names) not in self._raised:
            self._raised[tuple(names)] = type(first, (self._exception_class(rest),), {})
        return self._raised[tuple(names)]


class Remote:
    """An object of the other side. It equals only itself, and no operator but those below is asked for."""

    def __init__(self, peer: Exchange, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__dict__"):
            raise AttributeError(name)
        found = _ask(self, "attribute", name)
        if name in _METHODS and callable(found) and object.__getattribute__(self, "_peer").plain:
            raise AttributeError(f"the answer is no plain value, and its own {name!r} is not asked")
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set attribute", name, value)

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "set item", key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self, "delete item", key)

    def __len__(self) -> int:
        return int(_ask(self, "length"))

    def __bool__(self) -> bool:
        return _ask(self, "truth") is True

    def __iter__(self) -> Iterator[Any]:
        return iter(_ask(self, "iterator"))


class RemoteFunction(Remote):
    """A function or class of the other side, or an object that can be called."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return _ask(self, "call", list(arguments), named)

    def __bool__(self) -> bool:
        return True


class RemoteIterator(Remote):
    """An iterator of the other side, which advances there."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __bool__(self) -> bool:
        return True


async def _awaited(remote: Remote) -> Any:
    """A coroutine of the other side, which runs there from its beginning to its end."""
    return _ask(remote, "await")


def _run_to_its_end(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


def _ask(remote: Remote, operation: str, *values: Any) -> Any:
    peer: Exchange = object.__getattribute__(remote, "_peer")
    return peer.ask(operation, object.__getattribute__(remote, "_number"), *values)


_REMOTE: dict[str, type[Remote]] = {"object": Remote, "function": RemoteFunction, "iterator": RemoteIterator}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "attribute": getattr,
    "set attribute": setattr,
    "item": lambda thing, key: thing[key],
    "set item": lambda thing, key, value: type(thing).__setitem__(thing, key, value),
    "delete item": lambda thing, key: type(thing).__delitem__(thing, key),
    "length": len,
    "truth": bool,
    "iterator": iter,
    "await": _run_to_its_end,
}


# -- plain values: what stands in place, and containers, whose parts are lists of values


def _natural(value: Any) -> int:
    _require(type(value) is int and value >= 0)
    return int(value)


def _integers(values: list[Any]) -> list[int]:
    _require(all(type(value) is int for value in values))
    return values


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("not as values are sent")


def _text(value: Any) -> str:
    """What a value says of itself, where it can."""
    try:
        return str.__str__(str(value))[:1000]
    except BaseException:
        return type(value).__name__


def _changes(kind: str) -> bool:
    """Whether containers of this kind can change."""
    return kind in _EMPTY or kind.startswith("instance ")


_ABSENT = object()
_SCALARS = (int, float, str, bool, type(None), complex, bytes)
_PLAIN: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "bytes": lambda text: text.encode("latin-1"),
    "...": lambda: ...,
}
_METHODS = frozenset(
    name for kind in (str, bytes, int, float, list, tuple, set, dict) for name in dir(kind) if not name.startswith("_")
)
# types that an answer may name: calling one runs nothing of the program's
_NAMED: dict[str, Any] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, object)
}
# subclasses before their bases
_CONTAINERS: dict[type, str] = {
    list: "list", tuple: "tuple", collections.Counter: "counter", collections.OrderedDict: "ordered", dict: "dict",
    set: "set", frozenset: "frozenset", bytearray: "bytearray", collections.deque: "deque", range: "range",
    fractions.Fraction: "fraction", decimal.Decimal: "decimal", datetime.datetime: "datetime", datetime.date: "date",
    datetime.timedelta: "timedelta", datetime.time: "time", datetime.timezone: "timezone",
    type({}.keys()): "frozenset",
}  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {
    "list": list, "counter": collections.Counter, "ordered": collections.OrderedDict, "dict": dict, "set": set,
    "bytearray": bytearray, "deque": collections.deque,
}  # fmt: skip


def _apart(*types: type) -> Callable[[Any], tuple[list[Any], ...]]:
    """Lists what a container holds by its base's own iteration, whatever a subclass makes of that."""
    return lambda value: tuple(list(kind.__iter__(value)) for kind in types)  # type: ignore[attr-defined]


def _keys_and_values(value: Any) -> tuple[list[Any], list[Any]]:
    return list(dict.keys(value)), list(dict.values(value))


@functools.cache
def _tuple_class(name: str, *fields: str) -> Any:
    return collections.namedtuple(name, fields)


def _named_tuple(names: list[Any], values: list[Any]) -> Any:
    """A named tuple; none of its fields takes the place of a method."""
    _require(not any(callable(v) for n, v in zip(names[1:], values, strict=True) if hasattr(tuple, n)))
    return _tuple_class(*names)._make(values)


def _zone(value: datetime.datetime | datetime.time) -> datetime.timezone | None:
    offset = value.utcoffset()
    return None if offset is None else datetime.timezone(offset)


def _moment(kind: Callable[..., Any], fields: int) -> Callable[[list[Any]], Any]:
    """Makes a time of so many numbers, a zone and which of two same hours it is."""
    return lambda parts: kind(*_integers(parts[:fields]), parts[fields], fold=_natural(parts[fields + 1]))


_TAKEN_APART: dict[str, Callable[[Any], tuple[list[Any], ...]]] = {
    **{kind.__name__: _apart(kind) for kind in (list, tuple, set)},
    "frozenset": lambda v: (list(frozenset.__iter__(v) if isinstance(v, frozenset) else v),),
    "counter": _keys_and_values,
    "dict": _keys_and_values,
    "ordered": lambda v: (list(collections.OrderedDict.keys(v)), list(collections.OrderedDict.values(v))),
    "bytearray": lambda v: ([bytes(v)],),
    "deque": lambda v: (list(collections.deque.__iter__(v)), [v.maxlen]),
    "range": lambda v: ([v.start, v.stop, v.step],),
    "fraction": lambda v: ([v.numerator, v.denominator],),
    "decimal": lambda v: ([decimal.Decimal.__str__(v)],),
    "datetime": lambda v: ([v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, _zone(v), v.fold],),
    "time": lambda v: ([v.hour, v.minute, v.second, v.microsecond, _zone(v), v.fold],),
    "timezone": lambda v: ([v.utcoffset(None)],),
    "date": lambda v: ([v.year, v.month, v.day],),
    "timedelta": lambda v: ([v.days, v.seconds, v.microseconds],),
}
_MADE: dict[str, Callable[..., Any]] = {
    "named tuple": _named_tuple,
    "tuple": tuple,
    "frozenset": frozenset,
    "range": lambda parts: range(*_integers(parts)),
    "fraction": lambda parts: fractions.Fraction(*_integers(parts)),
    "decimal": lambda parts: decimal.Decimal(str(*parts)),
    "datetime": _moment(datetime.datetime, 7),
    "time": _moment(datetime.time, 4),
    "timezone": lambda parts: datetime.timezone(*parts),
    "date": lambda parts: datetime.date(*_integers(parts)),
    "timedelta": lambda parts: datetime.timedelta(*_integers(parts)),
}


def _attributes(value: Any) -> dict[str, Any]:
    """What an object of a class of the prompt holds, in its dictionary and in slots."""
    found = dict(getattr(value, "__dict__", {}))
    for name in _slots(type(value)):
        with contextlib.suppress(AttributeError):
            found[name] = object.__getattribute__(value, name)
    return found


def _slots(kind: type) -> list[str]:
    named = [each.__dict__.get("__slots__", ()) for each in kind.__mro__]
    return [n for names in named for n in ([names] if isinstance(names, str) else names) if not n.startswith("__")]


def _fill_dict(container: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    container.clear()
    for key, value in zip(keys, values, strict=True):
        container[key] = value


def _fill_set(container: set[Any], values: list[Any]) -> None:
    container.clear()
    container.update(values)


def _fill_sequence(container: Any, values: list[Any]) -> None:
    container[:] = values


def _fill_deque(container: collections.deque[Any], values: list[Any], most: list[Any]) -> None:
    if most[0] != container.maxlen:
        container.__init__((), _natural(most[0]))  # type: ignore[misc]
    container.clear()
    container.extend(values)


def _fill_instance(container: Any, names: list[Any], values: list[Any]) -> None:
    _require(all(type(name) is str for name in names) and len(names) == len(values))
    slots = set(_slots(type(container)))
    if hasattr(container, "__dict__"):
        container.__dict__.clear()
    for name, value in zip(names, values, strict=True):
        if name in slots:
            object.__setattr__(container, name, value)
        else:
            container.__dict__[name] = value


_FILLED: dict[str, Callable[..., None]] = {
    "list": _fill_sequence, "counter": _fill_dict, "ordered": _fill_dict, "dict": _fill_dict, "set": _fill_set,
    "bytearray": lambda container, values: _fill_sequence(container, values[0]), "deque": _fill_deque,
    "instance": _fill_instance,
}  # fmt: skip
