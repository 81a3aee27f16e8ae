"""The same as run.py, for `python -m benchmarks`."""

import sys

from benchmarks.command import main

sys.exit(main())
