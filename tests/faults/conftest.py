import sys
from pathlib import Path

# The brokers and the checker of histories.
sys.path.append(str(Path(__file__).parents[2] / "services" / "common" / "tests"))
