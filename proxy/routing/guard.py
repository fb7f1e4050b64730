"""MSETEX made safe.

Valkey 9.1 does not look at the slots of MSETEX: any primary runs it, whoever serves its keys (no MOVED, no CROSSSLOT),
also in MULTI and in scripts.  What a script declares as its keys is looked at, so the call travels as a script that
does nothing else: its reply and its errors are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.codec import encode_request
from proxy.routing.command_table import Command
from proxy.routing.key_specs import extract

UNCHECKED = frozenset({b"msetex"})
CROSSSLOT = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"

MOST_WORDS = 7900
"""Lua's stack takes some 8000 arguments."""
TOO_LARGE = b"-ERR MSETEX of so many keys in one slot is not supported by the proxy: send it in parts\r\n"

_SCRIPT = b"return redis.pcall(unpack(ARGV))"


def guarded(command: Command, args: Sequence[bytes]) -> bytes:
    """The request to send for ``args``, a call of ``command`` whose keys share one slot."""
    keys = [args[at] for at in extract(command, args).indices]
    if command.name not in UNCHECKED or not keys:
        return encode_request(args)
    return encode_request([b"EVAL", _SCRIPT, b"%d" % len(keys), *keys, *args])
