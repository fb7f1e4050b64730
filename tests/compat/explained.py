"""Why a test of somebody else's suite passes direct and not through the proxy."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

BY_ERROR: dict[str, str] = {
    "Keys in request don't hash to the same slot": "keys of several slots in one command or transaction (CROSSSLOT)",
    "denied in Cluster mode": "SORT with BY or GET patterns, which the engine denies in a cluster",
    "non local key in a cluster node": "a script that uses keys it does not declare",
    "is refused by the proxy": "refused because it could break the cluster (BGSAVE, REPLICAOF, CONFIG SET requirepass)",
    "TRACKING with REDIRECT is not supported": "CLIENT TRACKING with REDIRECT: RESP3 needs none",
}
"""What the test failed with -> the reason."""

BY_NAME: dict[str, str] = {
    "*::test_exec_error_raised*": "keys of several slots in one command or transaction (CROSSSLOT)",
    "*test_cache.py::TestLocalCache::test_get_from_cache*": "an invalidation now and then comes right after the reply "
    "to another client's write, where one server sends it right before",
    "*::test_acl_log*": "ACL LOG lacks what the proxy itself denies (here CLIENT SETINFO), which no node gets to see",
}
"""Pattern of the test's name -> the reason."""


def explanation(test: str, row: Mapping[str, str]) -> str | None:
    """The reason for one test; None where there is none yet."""
    for part, why in BY_ERROR.items():
        if part in row["reason"]:
            return why
    return next((why for pattern, why in BY_NAME.items() if fnmatch(test, pattern)), None)
