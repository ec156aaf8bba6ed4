"""`python -m gpt2_tokenizer`: serves the tokenizer until SIGTERM."""

from gpt2_common.server import main
from gpt2_tokenizer.service import SERVICE

if __name__ == "__main__":
    main(SERVICE)
