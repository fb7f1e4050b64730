"""SLOWLOG GET and COMMANDLOG GET: what all nodes logged, and where.

An entry's last field is the name of the client (CLIENT SETNAME) that sent the command.  For what came by a proxy that
is the proxy's own, which says nothing; the node's address is put behind it: ``ackgate node=127.0.0.1:7001``.  A name
holds no blanks, so the two are told apart.  Everything else is as the node gives it.

What the proxies say to the nodes of their own accord is left out: it would bury the rest where every command is logged.
SLOWLOG LEN counts it all the same.
"""

from __future__ import annotations

from proxy.codec import encode_request
from proxy.codec.reply import array, bulk, bulk_value, elements, is_error
from proxy.control.call import Call, Handler
from proxy.control.sending import Sender

OF_THE_PROXY = b"ackgate-control"  # the name of connections no client's command travels on
OF_LANES = b"ackgate"
NEVER_OF_CLIENTS = ([b"client"], [b"cluster"], [b"hello"], [b"auth"], [b"role"], [b"wait"], [b"waitaof"])
"""On a lane these are the proxy's own: a client's it answers itself."""
AT_THE_BEGINNING = ([b"info", b"server"], [b"info", b"replication"])  # of each lane
LOOKED_AT = 128  # entries of each node at least (the engine's slowlog-max-len), of which some are left out
WORDS = 3
NAME = 5  # index of the client's name in an entry (slowlog.c, commandlog.c: id, time, duration, words, address, name)


class LogCommands:
    """See the module."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.handlers: dict[bytes, Handler] = {b"slowlog|get": self._get, b"commandlog|get": self._get}

    async def _get(self, call: Call) -> None:
        count = call.args[2] if len(call.args) > 2 else b"10"
        if count.isdigit() and int(count) < LOOKED_AT:
            call.request.raw = encode_request([*call.args[:2], b"%d" % LOOKED_AT, *call.args[3:]])
        replies = await self.sender.of_all_nodes(call)
        named = [(address, with_node(frame, address)) for address, frame in replies]
        self.sender.answer(call.request, self.sender.merged(call, named))


def with_node(frame: bytes, address: str) -> bytes:
    """A node's reply with its address in every entry."""
    if is_error(frame):
        return frame
    return array([_entry(entry, address.encode()) for entry in elements(frame) if not _own(elements(entry))])


def _own(fields: list[bytes]) -> bool:
    """Whether it is the proxy's own doing."""
    if len(fields) <= NAME:
        return False
    name = bulk_value(fields[NAME])
    if name != OF_LANES:
        return name == OF_THE_PROXY
    words = [(bulk_value(word) or b"").lower() for word in elements(fields[WORDS])]
    return words[:1] in NEVER_OF_CLIENTS or words in AT_THE_BEGINNING


def _entry(entry: bytes, address: bytes) -> bytes:
    fields = elements(entry)
    if len(fields) <= NAME:
        return entry
    name = bulk_value(fields[NAME]) or b""
    fields[NAME] = bulk(b"%s node=%s" % (name, address) if name else b"node=" + address)
    return array(fields)
