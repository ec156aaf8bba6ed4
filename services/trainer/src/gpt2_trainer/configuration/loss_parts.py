"""Into how many parts the loss of a batch is divided, so that its scores fit in memory. Imports no framework."""

MOST_SCORES = 1 << 28
"""Scores of next tokens that may exist at one time: 1 GiB in float32."""


def count_parts(tokens: int, vocabulary: int, most: int = MOST_SCORES) -> int:
    """Equal parts that a batch's tokens are divided into: the fewest with at most `most` scores each."""
    fitting = (parts for parts in range(1, tokens) if tokens % parts == 0 and tokens // parts * vocabulary <= most)
    return next(fitting, tokens)
