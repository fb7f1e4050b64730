"""Client-side caching as one session asked for it: CLIENT TRACKING, CACHING, TRACKINGINFO and GETREDIR.

What lives here: options, their rules and error texts, and how the state is shown.  What may not: lanes and pushes
(``control.tracking``).

Source: networking.c (``clientCommand``) and tracking.c of Valkey 9.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from proxy.codec import encode_request
from proxy.codec.reply import array, bulk, integer, map_, set_
from proxy.routing.key_specs import strict_integer

NOT_TRACKING = (
    "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled"
)
ONLY_OPTIN = "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode."
ONLY_OPTOUT = "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode."
SYNTAX = "ERR syntax error"
SWITCH_BCAST = (
    "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then re-enabling it with "
    "a different mode."
)
SWITCH_OPT = SWITCH_BCAST.replace("BCAST mode on/off", "OPTIN/OPTOUT mode")
REDIRECT = (
    "ERR CLIENT TRACKING with REDIRECT is not supported by the proxy: let the connection that reads speak RESP3 "
    "(HELLO 3), it gets the invalidations itself then"
)
MOST_PREFIXES = 1 << 20  # bytes of one session's prefixes, which each of its connections has to be told
OFF = -1  # what CLIENT GETREDIR says of a client that does not track


class Refused(Exception):
    """The message is the error's text."""


class Asked(NamedTuple):
    """CLIENT TRACKING, read; what it means depends on what is tracked already."""

    on: bool
    broadcast: bool
    opt_in: bool
    opt_out: bool
    no_loop: bool
    prefixes: tuple[bytes, ...]


def parse(args: Sequence[bytes], exists: Callable[[int], bool]) -> Asked:
    """Read CLIENT TRACKING on|off ....  ``exists``: whether there is a client of this id.  Raises ``Refused``."""
    flags: set[bytes] = set()
    prefixes: list[bytes] = []
    redirected = False
    at = 3
    while at < len(args):
        option = args[at].lower()
        more = at + 1 < len(args)
        if option == b"redirect" and more:
            if redirected:
                raise Refused("ERR A client can only redirect to a single other client")
            at += 1
            target = strict_integer(args[at])
            if target is None:
                raise Refused("ERR value is not an integer or out of range")
            if not exists(target):
                raise Refused("ERR The client ID you want redirect to does not exist")
            redirected = True
        elif option in (b"bcast", b"optin", b"optout", b"noloop"):
            flags.add(option)
        elif option == b"prefix" and more:
            at += 1
            prefixes.append(args[at])
        else:
            raise Refused(SYNTAX)
        at += 1
    switch = args[2].lower()
    if switch not in (b"on", b"off"):
        raise Refused(SYNTAX)
    if redirected and switch == b"on":
        raise Refused(REDIRECT)
    return Asked(
        switch == b"on", b"bcast" in flags, b"optin" in flags, b"optout" in flags, b"noloop" in flags, tuple(prefixes)
    )


class Tracking:
    """What a session that tracks has asked for."""

    def __init__(self) -> None:
        self.broadcast = False
        self.opt_in = False
        self.opt_out = False
        self.no_loop = False
        self.prefixes: set[bytes] = set()
        self.caching = False
        """CLIENT CACHING was said: it is about the next command, or all of the transaction that begins with it."""
        self.spent = False
        """The command it is about has begun."""
        self.live = False
        """The shards remember what is read: from the reply to CLIENT TRACKING on."""
        self.forgot_at = -1.0
        """When the client had last sent something, as it was told to forget everything while nothing was under way."""

    def change(self, asked: Asked) -> None:
        """CLIENT TRACKING on.  Raises ``Refused``, and nothing has changed then."""
        self._check(asked)
        self.broadcast, self.opt_in, self.opt_out = asked.broadcast, asked.opt_in, asked.opt_out
        self.no_loop = asked.no_loop
        if asked.broadcast:
            self.prefixes.update(asked.prefixes or [b""])

    def _check(self, asked: Asked) -> None:
        if asked.prefixes and not asked.broadcast:
            raise Refused("ERR PREFIX option requires BCAST mode to be enabled")
        if self.live and asked.broadcast != self.broadcast:
            raise Refused(SWITCH_BCAST)
        if asked.broadcast and (asked.opt_in or asked.opt_out):
            raise Refused("ERR OPTIN and OPTOUT are not compatible with BCAST")
        if asked.opt_in and asked.opt_out:
            raise Refused("ERR You can't specify both OPTIN mode and OPTOUT mode")
        if (asked.opt_in and self.opt_out) or (asked.opt_out and self.opt_in):
            raise Refused(SWITCH_OPT)
        if asked.broadcast:
            self._check_prefixes(asked.prefixes)
            if sum(map(len, (*self.prefixes, *asked.prefixes))) > MOST_PREFIXES:
                raise Refused(f"ERR the prefixes of one client may have {MOST_PREFIXES} bytes together: use fewer")

    def _check_prefixes(self, prefixes: Sequence[bytes]) -> None:
        """No key may have two of them (tracking.c: checkPrefixCollisionsOrReply)."""
        for at, prefix in enumerate(prefixes):
            for other in sorted(self.prefixes):
                if _collide(prefix, other):
                    raise Refused(_overlap(prefix, "an existing prefix", other))
            for other in prefixes[at + 1 :]:
                if _collide(prefix, other):
                    raise Refused(_overlap(prefix, "another provided prefix", other))

    def request(self) -> bytes:
        """The one request that makes a connection track so."""
        words = [b"CLIENT", b"TRACKING", b"ON"]
        if self.broadcast:
            words.append(b"BCAST")
            for prefix in sorted(self.prefixes):
                words += [b"PREFIX", prefix]
        flags = ((b"OPTIN", self.opt_in), (b"OPTOUT", self.opt_out), (b"NOLOOP", self.no_loop))
        return encode_request([*words, *(word for word, there in flags if there)])

    def check_caching(self, option: bytes) -> None:
        """Whether CLIENT CACHING yes|no may be said.  Raises ``Refused``."""
        word = option.lower()
        if word not in (b"yes", b"no"):
            raise Refused(SYNTAX)
        if word == b"yes" and not self.opt_in:
            raise Refused(ONLY_OPTIN)
        if word == b"no" and not self.opt_out:
            raise Refused(ONLY_OPTOUT)


def _collide(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)


def _overlap(prefix: bytes, what: str, other: bytes) -> str:
    mine, theirs = (each.decode("utf-8", "surrogateescape") for each in (prefix, other))
    return f"ERR Prefix '{mine}' overlaps with {what} '{theirs}'. Prefixes for a single client must not overlap."


def info(tracking: Tracking | None, protocol: int) -> bytes:
    """The reply to CLIENT TRACKINGINFO."""
    prefixes = sorted(tracking.prefixes) if tracking is not None else []
    fields = [
        (b"flags", set_([bulk(flag) for flag in _flags(tracking)], protocol)),
        (b"redirect", integer(0 if tracking is not None else OFF)),
        (b"prefixes", array([bulk(prefix) for prefix in prefixes])),
    ]
    return map_([(bulk(name), value) for name, value in fields], protocol)


def _flags(tracking: Tracking | None) -> list[bytes]:
    if tracking is None:
        return [b"off"]
    flags = [
        (b"on", True),
        (b"bcast", tracking.broadcast),
        (b"optin", tracking.opt_in),
        (b"caching-yes", tracking.opt_in and tracking.caching),
        (b"optout", tracking.opt_out),
        (b"caching-no", tracking.opt_out and tracking.caching),
        (b"noloop", tracking.no_loop),
    ]
    return [flag for flag, there in flags if there]
