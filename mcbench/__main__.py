"""`python -m mcbench` is `mcbench`."""

import sys

from mcbench.cli import main

sys.exit(main())
