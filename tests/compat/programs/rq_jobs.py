"""What RQ's workers run."""

from __future__ import annotations


def double(number: int) -> int:
    return 2 * number
