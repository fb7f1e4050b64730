"""Replies that say "not here" or "not now", and which of them are the engine's own."""

from __future__ import annotations

from proxy.codec import decode_request
from proxy.dataplane import Request

WATCHED = (
    b"-MOVED ",
    b"-ASK ",
    b"-TRYAGAIN Multiple keys request",
    b"-CLUSTERDOWN The cluster is down",
    b"-CLUSTERDOWN Hash slot not served",
    b"-LOADING Valkey is loading",
    b"-LOADING Redis is loading",
    b"-READONLY You can't write against a read only replica",
    b"-READONLY Can not run script with write flag on readonly replica",
    b"-MASTERDOWN Link with MASTER is down",
)
"""Replies that say "not here" or "not now" and prove that nothing was executed.

In the engine's own words (server.c: createSharedObjects, cluster.c: clusterRedirectClient), not by their first word
alone: a script may return any error it likes behind what it wrote, and would be run again.
"""
IN_A_SCRIPT = b" script: "
"""The engine appends this to errors raised within a script, which may have written before it failed."""
SCRIPTS = frozenset({b"eval", b"eval_ro", b"evalsha", b"evalsha_ro", b"fcall", b"fcall_ro"})


def is_elsewhere(request: Request, frame: bytes) -> bool:
    """Whether a reply is the engine's own "not here" or "not now", behind which nothing has run."""
    if not frame.startswith(WATCHED) or IN_A_SCRIPT in frame:
        return False
    words = frame[1:-2].split(b" ")
    return words[0] not in (b"MOVED", b"ASK") or sent_elsewhere(request, words)


def sent_elsewhere(request: Request, words: list[bytes]) -> bool:
    """Whether a MOVED or ASK is the engine's: it names the slot of the keys, and a script without keys gets none."""
    if len(words) != 3:
        return False
    if request.slot >= 0:
        return words[1] == b"%d" % request.slot
    return decode_request(request.raw)[0].lower() not in SCRIPTS
