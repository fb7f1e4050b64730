"""Versions of engines as numbers that compare."""

from __future__ import annotations


def numbers(version: str) -> tuple[int, ...]:
    """``"9.1.2"`` as ``(9, 1, 2)``; words that are no numbers are left out."""
    return tuple(int(word) for word in version.split(".") if word.isdigit())
