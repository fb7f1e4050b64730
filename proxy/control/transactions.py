"""WATCH, MULTI, EXEC, DISCARD and UNWATCH, and what may stand between them."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.acks.question import Unconfirmed
from proxy.acks.wait import GONE
from proxy.codec.reply import OK, error
from proxy.control.call import Call, Handler, Step
from proxy.control.connection import ConnectionCommands
from proxy.control.extras import Extras
from proxy.control.sending import Sender
from proxy.control.waiting import WaitCommands
from proxy.routing import Command, extract, first_slot, slots_of
from proxy.sessions.session import Session
from proxy.sessions.transaction import Transaction

LEAVING = frozenset({b"quit", b"reset"})


def refused_within(command: Command) -> bool:
    """Whether the engine refuses it between MULTI and EXEC, whatever else there is to be said of it."""
    return b"no_multi" in command.flags and command.name not in LEAVING


class TransactionCommands:
    """See the module.  ``handlers``: of the commands with a way of their own; ``patience`` in seconds."""

    def __init__(
        self,
        sender: Sender,
        connection: ConnectionCommands,
        waits: WaitCommands,
        handlers: Mapping[bytes, Handler],
        patience: float,
    ) -> None:
        self.sender = sender
        self.connection = connection
        self.waits = waits
        self._extras = Extras(sender, connection.permissions, handlers)
        self._patience = patience
        self.handlers: dict[bytes, Handler] = {
            b"multi": self._multi,
            b"exec": self._exec,
            b"discard": self._discard,
            b"watch": self._watch,
            b"unwatch": self._unwatch,
        }

    def _transaction(self, session: Session) -> Transaction:
        if session.transaction is None:
            sender = self.sender
            fill = self._extras.fill
            session.transaction = Transaction(session, sender.plane, sender.lanes, sender, self._patience, fill)
        return session.transaction

    def _multi(self, call: Call) -> None:
        self._transaction(call.session).begin(call.request)

    def _watch(self, call: Call) -> Step:
        slots = slots_of(extract(call.command, call.args), call.args)
        return self._transaction(call.session).watch(call.request, slots)

    def _unwatch(self, call: Call) -> None:
        if call.session.transaction is None:
            self.sender.answer(call.request, OK)
        else:
            call.session.transaction.unwatch(call.request)

    def _exec(self, call: Call) -> None:
        self.sender.answer(call.request, b"-ERR EXEC without MULTI\r\n")

    def _discard(self, call: Call) -> None:
        self.sender.answer(call.request, b"-ERR DISCARD without MULTI\r\n")

    def within(self, call: Call) -> Step | None:
        """A command between MULTI and EXEC."""
        transaction = call.session.transaction
        assert transaction is not None
        name = call.command.name
        if name == b"exec":
            if transaction.queued.put_in and not transaction.doomed:
                return self._put_in_and_execute(call, transaction)
            return transaction.execute(call.request)
        if name == b"discard":
            transaction.discard(call.request)
        elif name == b"quit":
            self.connection.quit(call)
        elif name == b"reset":
            self.connection.reset(call)
        elif refused_within(call.command):
            transaction.refuse(call.request, error(b"ERR Command '%s' not allowed inside a transaction" % name))
        elif name in self.waits.handlers:
            transaction.queue(call.request, call.command, None, put_in=True)
        elif not self._extras.possible(call.command):
            words = name.replace(b"|", b" ")
            transaction.refuse(call.request, error(b"ERR '%s' inside MULTI is not supported by the proxy yet" % words))
        else:
            self._queue(call, transaction)
        return None

    def _queue(self, call: Call, transaction: Transaction) -> None:
        extra = self._extras.extra(call.command, call.args)
        if extra is None:
            slot = first_slot(call.command, call.args) if call.command.is_keyed else None
            transaction.queue(call.request, call.command, slot)
            return
        raw = self._extras.stands_in(extra)
        transaction.queued.soils = transaction.queued.soils or self._extras.soils(extra)
        transaction.queue(call.request, call.command, None, extra=extra, raw=raw)

    async def _put_in_and_execute(self, call: Call, transaction: Transaction) -> None:
        """EXEC with WAITs in it.  The counts are taken first: should there be none to give, nothing has run yet."""
        try:
            frames = await self.waits.present(call.session, transaction.queued.to_put_in())
        except Unconfirmed:
            self.sender.answer_last(call.request, GONE)
            return
        put_in = transaction.queued.put_in
        put_in.update(zip(put_in, frames, strict=True))
        step = transaction.execute(call.request)
        if step is not None:
            await step
