"""Whether the Hugging Face hub can be asked, found out in seconds where its own clients try for half a minute."""

from __future__ import annotations

import functools
import os
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

from mcbench.errors import BadInput

SECONDS = 4.0  # for the hub to answer
OFFLINE = "HF_HUB_OFFLINE"


def away(*variables: str) -> str:
    """Why the hub cannot be asked, empty where it may; `variables` of the environment keep it away as well."""
    for name in (OFFLINE, *variables):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{name} keeps the hub away"
    from huggingface_hub import constants

    return _unreachable(constants.ENDPOINT)


class Found(NamedTuple):
    """A model of the hub: the folder of its cached files, whether the hub is not to be asked again, and remarks."""

    folder: Path
    local: bool
    notes: tuple[str, ...]


def find(name: str) -> Found:
    """The cached files of a name on the hub, its config.json fetched first.

    Raises BadInput, with both readings of the name, where there is neither such a folder nor such a model.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    parent = Path(name).parent
    beside = parent.name and parent.is_dir()
    lacking = f" (the folder {str(parent)!r} is there, but has no {Path(name).name!r})" if beside else ""
    neither = f"the model {name!r} cannot be loaded: there is no such folder{lacking}, and "
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except errors.HFValidationError:
        raise BadInput(f"{neither}it is no name that the hub could have") from None
    known = Path(cached).parent if isinstance(cached, str) else None
    notes = (f"the model was read from the hub as {name}: there is no such folder here",) if beside else ()
    reason = away()
    if not reason:
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=SECONDS, retry_on_errors=False)
            return Found(Path(hf_hub_download(name, "config.json")).parent, False, notes)
        except errors.GatedRepoError:
            reason = "the hub gives it to those who have accepted its terms: `hf auth login`"
        except errors.RepositoryNotFoundError:
            reason = "the hub has no model of that name, or a private one: `hf auth login`"
        except errors.EntryNotFoundError:
            reason = "what the hub has under that name holds no config.json"
        except errors.HfHubHTTPError as error:
            reason = f"the hub says: {' '.join(str(error).split())[:200]}"
        except Exception as error:  # whatever the network library of the day raises
            reason = f"the hub cannot be reached: {' '.join(str(error).split())[:200]}"
    if known is None:
        raise BadInput(f"{neither}{reason}; give the path of a model folder")
    return Found(known, True, notes)


@functools.lru_cache(maxsize=4)
def _unreachable(endpoint: str) -> str:
    if urllib.request.getproxies().keys() - {"no"}:
        return ""
    place = urllib.parse.urlsplit(endpoint)
    host, port = place.hostname or "", place.port or (80 if place.scheme == "http" else 443)
    found: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=SECONDS).close()
        except OSError as error:
            unknown = isinstance(error, socket.gaierror)
            found.append("is unknown" if unknown else f"gives no connection: {error.strerror or error}")
        else:
            found.append("")

    thread = threading.Thread(target=connect, daemon=True)  # a name server that is silent has a longer patience
    thread.start()
    thread.join(SECONDS)
    said = found[0] if found else f"does not answer within {SECONDS:g} seconds"
    return f"the hub cannot be reached: {host} {said}" if said else ""
