"""What the user of the benchmark is told in one line."""


class BenchError(Exception):
    """Something is missing or did not work; the text says what, and what to do."""
