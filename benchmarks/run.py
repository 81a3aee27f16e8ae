"""Run the benchmark from anywhere: `python benchmarks/run.py --help`."""

import runpy
import sys
from pathlib import Path

# The repository instead of this folder, whose modules would hide others of the same name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
runpy.run_module("benchmarks")
