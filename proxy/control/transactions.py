"""WATCH, MULTI, EXEC, DISCARD and UNWATCH, and what may stand between them."""

from __future__ import annotations

from collections.abc import Collection

from proxy.acks.wait import GONE, Unconfirmed
from proxy.codec.reply import OK, error
from proxy.control.call import Call, Handler, Step
from proxy.control.connection import ConnectionCommands
from proxy.control.sending import Sender
from proxy.control.waiting import WaitCommands
from proxy.routing import Command, extract, first_slot, slots_of
from proxy.sessions.session import Session
from proxy.sessions.transaction import Transaction

AS_IS = frozenset({b"ping", b"echo", b"unwatch"})
"""Commands with a way of their own whose answer from any shard is the same."""


class TransactionCommands:
    """See the module.  ``own``: names of commands with a way of their own; ``patience`` in seconds."""

    def __init__(
        self,
        sender: Sender,
        connection: ConnectionCommands,
        waits: WaitCommands,
        own: Collection[bytes],
        patience: float,
    ) -> None:
        self.sender = sender
        self.connection = connection
        self.waits = waits
        self._own = own
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
            session.transaction = Transaction(session, sender.plane, sender.lanes, sender, self._patience)
        return session.transaction

    def _multi(self, call: Call) -> None:
        self._transaction(call.session).begin(call.request)

    def _watch(self, call: Call) -> None:
        self._transaction(call.session).watch(call.request, slots_of(extract(call.command, call.args), call.args))

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
            if transaction.put_in and not transaction.doomed:
                return self._put_in_and_execute(call, transaction)
            return transaction.execute(call.request)
        if name == b"discard":
            transaction.discard(call.request)
        elif name == b"quit":
            self.connection.quit(call)
        elif name == b"reset":
            self.connection.reset(call)
        elif b"no_multi" in call.command.flags:
            transaction.refuse(call.request, error(b"ERR Command '%s' not allowed inside a transaction" % name))
        elif name in self.waits.handlers:
            transaction.queue(call.request, call.command, None, put_in=True)
        elif not self._may_queue(call.command):
            words = name.replace(b"|", b" ")
            transaction.refuse(call.request, error(b"ERR '%s' inside MULTI is not supported by the proxy yet" % words))
        else:
            slot = first_slot(call.command, call.args) if call.command.is_keyed else None
            transaction.queue(call.request, call.command, slot)
        return None

    async def _put_in_and_execute(self, call: Call, transaction: Transaction) -> None:
        """EXEC with WAITs in it.  The counts are taken first: should there be none to give, nothing has run yet."""
        try:
            frames = await self.waits.present(call.session, transaction.to_put_in())
        except Unconfirmed:
            self.sender.answer_last(call.request, GONE)
            return
        transaction.put_in.update(zip(transaction.put_in, frames, strict=True))
        step = transaction.execute(call.request)
        if step is not None:
            await step

    def _may_queue(self, command: Command) -> bool:
        """Whether one shard's answer is the whole answer."""
        if command.is_keyed:
            return command.request_policy in (None, b"multi_shard")
        if command.name in AS_IS:
            return True
        return command.request_policy is None and command.name not in self._own
