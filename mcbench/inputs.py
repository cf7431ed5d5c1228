"""What was asked for is looked at before torch is imported or a weight is read: files, folders, names, devices.

Only a device other than the processor needs torch to be looked at. Everything here raises BadInput or UnknownName.
"""

from __future__ import annotations

import difflib
import re
import tempfile
from pathlib import Path

from mcbench import hub
from mcbench.bounds import shown
from mcbench.errors import BadInput, UnknownName
from mcbench.files import PACKED, require_file
from mcbench.reference import model_names
from mcbench.registry import nearest, suggest
from mcbench.sealed import note

DTYPES = ("auto", "float32", "bfloat16", "float16")
# that torch knows by name; whether one is there is found out when it is asked for
DEVICES = ("cpu", "cuda", "hpu", "ipu", "maia", "meta", "mps", "mtia", "npu", "privateuseone", "vulkan", "xla", "xpu")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def require_dtype(dtype: str) -> None:
    """A precision in which a model can be loaded."""
    if dtype not in DTYPES:
        raise UnknownName(f"there is no dtype {shown(dtype)}; {suggest(dtype, DTYPES)}")


def require_device(device: str) -> None:
    """A device that exists here and computes in float64, as calibration, allocation and statistics do."""
    kind, colon, index = device.partition(":")
    if kind not in DEVICES:
        raise UnknownName(f"there is no device {shown(device)}; {suggest(kind, DEVICES)}")
    if colon and (not index.isascii() or not index.isdecimal() or len(index) > 4):
        raise BadInput(f"a device is a kind and a number from 0, such as cuda:1, not {shown(device)}")
    if kind == "meta":
        raise BadInput("a model on device 'meta' has no weights to compress; choose cpu or cuda")
    if kind == "mps":
        raise BadInput("device 'mps' does not compute in float64, which calibration needs; choose cpu")
    if kind == "cuda":
        _require_cuda(device, int(index or 0))
    elif kind != "cpu":
        _require_float64(device)
    elif int(index or 0):
        raise BadInput(f"there is one device 'cpu', so no {device!r}; leave the number out")


def require_model(name: str) -> None:
    """A model of this package, a folder of a model, or a name that the hub may know."""
    path = Path(name).expanduser()
    if name in model_names():
        return
    try:
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise BadInput(f"{name!r} is no model folder: it has no config.json")
            return
        if path.exists():
            raise BadInput(f"{name!r} is a file; a model is a folder with a config.json, or a name on the hub")
    except OSError as error:
        raise BadInput(f"{name!r} cannot be read: {error.strerror}") from None
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not _HUB_NAME.fullmatch(name):
        raise BadInput(f"there is no model folder {name!r}")
    if near := _folder_like(path):
        raise BadInput(f"there is no model folder {name!r}; did you mean {near!r}?")
    if "/" not in name and nearest(name, model_names()):
        raise UnknownName(f"no model is called {name!r}; {suggest(name, model_names())}")
    place = "in the Hugging Face cache" if hub.find(name).local else "on the hub"
    note(f"there is no folder {name!r} here; the model of that name {place} is taken")


def _folder_like(path: Path) -> str:
    """The folder beside a path whose name is nearly that of the path; empty where there is none."""
    try:
        beside = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except OSError:
        return ""
    alike = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.8)
    return str(path.parent / alike[0]) if alike else ""


def require_calibration(path: str | Path) -> None:
    """A file of text that can be opened."""
    try:
        if not str(path).strip() or Path(path).is_dir():
            raise BadInput(f"{str(path)!r} is no calibration text; name a file")
        require_file(Path(path), "the calibration text")
        with Path(path).open("rb"):
            return
    except FileNotFoundError:
        raise BadInput(f"there is no calibration text at {str(path)!r}; check the path") from None
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"the calibration text {str(path)!r} cannot be read: {reason}") from None


def require_place(folder: str | Path) -> Path:
    """The folder, where a compressed model can be written to it.

    It has to be new, empty, or an earlier compressed model, and no link.
    """
    place = Path(folder).absolute()
    try:
        if not place.name or "\0" in place.name or place.is_symlink():
            raise BadInput(f"{str(folder)!r} is no name for a new folder; choose one")
        if place.exists() and not (place / PACKED).is_file() and (not place.is_dir() or any(place.iterdir())):
            raise BadInput(f"{str(folder)!r} holds something else; choose a new folder for the compressed model")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.parent) as probe:
            probe.write(b"\0")
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"{str(folder)!r} cannot be written: {reason}") from None
    return place


def _require_cuda(device: str, index: int) -> None:
    import torch

    if not torch.cuda.is_available():
        built = "this machine has no CUDA device" if torch.version.cuda else "this torch was built without CUDA"
        raise BadInput(f"{device!r} cannot be used: {built}; choose cpu")
    if index >= torch.cuda.device_count():
        raise BadInput(f"there is no {device!r}: this machine has {torch.cuda.device_count()}, counted from cuda:0")


def _require_float64(device: str) -> None:
    import torch

    try:
        torch.ones(1, dtype=torch.float64, device=device).sum().item()
    except Exception as error:  # each backend has errors of its own
        reason = " ".join(str(error).split(".")[0].split())[:200]
        raise BadInput(f"device {device!r} cannot be used here: {reason}; choose cpu") from None
