"""`python -m gpt2_exporter`: serves the exporter until it is told to stop."""

from gpt2_common.server import main
from gpt2_exporter.service import SERVICE

if __name__ == "__main__":
    main(SERVICE)
