"""SLOWLOG GET and COMMANDLOG GET: what all nodes logged, and where.

An entry's last field is the name of the client (CLIENT SETNAME) that sent the command.  For what came by a proxy that
is the proxy's own, which says nothing; the node's address is put behind it: ``ackgate node=127.0.0.1:7001``.  A name
holds no blanks, so the two are told apart.  Everything else is as the node gives it.
"""

from __future__ import annotations

from proxy.codec.reply import array, bulk, bulk_value, elements, is_error
from proxy.control.call import Call, Handler
from proxy.control.sending import Sender

NAME = 5  # index of the client's name in an entry (slowlog.c, commandlog.c: id, time, duration, words, address, name)


class LogCommands:
    """See the module."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.handlers: dict[bytes, Handler] = {b"slowlog|get": self._get, b"commandlog|get": self._get}

    async def _get(self, call: Call) -> None:
        replies = await self.sender.of_all_nodes(call)
        named = [(address, with_node(frame, address)) for address, frame in replies]
        self.sender.answer(call.request, self.sender.merged(call, named))


def with_node(frame: bytes, address: str) -> bytes:
    """A node's reply with its address in every entry."""
    if is_error(frame):
        return frame
    return array([_entry(entry, address.encode()) for entry in elements(frame)])


def _entry(entry: bytes, address: bytes) -> bytes:
    fields = elements(entry)
    if len(fields) <= NAME:
        return entry
    name = bulk_value(fields[NAME]) or b""
    fields[NAME] = bulk(b"%s node=%s" % (name, address) if name else b"node=" + address)
    return array(fields)
