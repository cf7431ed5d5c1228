"""`mcbench` at the shell and `python -m mcbench`: Ctrl-C is heard from the first moment to the last."""

from __future__ import annotations

import atexit
import sys

from mcbench import interrupts


def main() -> int:
    """Runs the command line and returns its exit code; see `mcbench.cli.main`."""
    try:
        interrupts.listen()
        atexit.register(interrupts.leave)  # the first one is called last
        from mcbench.cli import main as command

        code = command()
    except KeyboardInterrupt:
        sys.stderr.write("mcbench: interrupted\n")
        code = interrupts.INTERRUPTED
    interrupts.leave_at_once()
    return interrupts.INTERRUPTED if interrupts.asked() else code


if __name__ == "__main__":
    sys.exit(main())
