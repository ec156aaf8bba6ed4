"""`python -m gpt2_exporter`: serves the exporter until SIGTERM."""

from gpt2_common.server import main
from gpt2_exporter.service import SERVICE

if __name__ == "__main__":
    main(SERVICE)
