"""Why a test of somebody else's suite passes direct and not through the proxy."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

BY_ERROR: dict[str, str] = {
    "Keys in request don't hash to the same slot": "keys of several slots in one command or transaction (CROSSSLOT)",
    "denied in Cluster mode": "SORT with BY or GET patterns, which the engine denies in a cluster",
}
"""What the test failed with -> the reason."""

BY_NAME: dict[str, str] = {}
"""Pattern of the test's name -> the reason."""


def explanation(test: str, row: Mapping[str, str]) -> str | None:
    """The reason for one test; None where there is none yet."""
    for part, why in BY_ERROR.items():
        if part in row["reason"]:
            return why
    return next((why for pattern, why in BY_NAME.items() if fnmatch(test, pattern)), None)
