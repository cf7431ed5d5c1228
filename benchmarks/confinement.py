"""How many hostile programs get through each way of confinement that works for this user on this machine?

    python benchmarks/confinement.py

The programs are those of the tests (`tests/hostile.py`). Where a way leaves them alone ("limits") only those run that
harm nothing; what gets through there shows that the attempts are real. Root is confined by namespaces without a user
namespace, anybody else by one, or by bubblewrap: run this as both to see all.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from tabulate import tabulate

from mcbench.sandbox import MECHANISMS, probe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def main() -> None:
    from hostile import CONFINED, FREE, attack

    rows = []
    for mechanism, name in MECHANISMS.items():
        leaks = probe(mechanism)
        if leaks is None:
            rows.append([mechanism, name, "does not work for this user", "", ""])
            continue
        found = attack(mechanism, FREE if leaks else FREE | CONFINED)
        through = f"{len(found.through)} of {found.tried}"
        rows.append([mechanism, name, through, "; ".join(found.harmed) or "nothing", f"{found.seconds:.0f} s"])
        for program, outcome in found.through.items() if not leaks else ():
            sys.stdout.write(f"{mechanism}: {program}: {outcome}\n")
    table = tabulate(rows, ["way", "made of", "got through", "harmed", "time"], tablefmt="github")
    user = "an ordinary user" if os.geteuid() else "root"
    sys.stdout.write(f"Linux {platform.release()}, {user}\n\n{table}\n")


if __name__ == "__main__":
    main()
