"""What the benchmarks are made of: what they measure, and the machine under it."""

import sys
from pathlib import Path

# The simulation, which some of them measure, is no part of an installation.
sys.path.append(str(Path(__file__).resolve().parents[2]))
