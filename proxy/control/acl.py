"""ACL SETUSER, DELUSER, LOAD and LOG: the users are per node, so these go to every node, replicas too.

The other subcommands need nothing of their own: SAVE goes to every node by the engine's own hint, and LIST, USERS,
GETUSER, CAT, GENPASS and DRYRUN are answered by one shard.  All on the session's own lanes, where the engine checks
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.codec.reply import array, decode, elements, error, is_error
from proxy.control.call import Call, Handler
from proxy.control.sending import Sender
from proxy.topology.logins import DEFAULT, name_of, text_of
from proxy.topology.roster import Roster

HARMLESS = frozenset({b"on", b"nopass", b"~*", b"allkeys", b"&*", b"allchannels", b"+@all", b"allcommands", b"alldbs"})
"""Rules that take nothing from a user."""
LATEST = 10  # entries of ACL LOG where no other number is asked for


class AclCommands:
    """See the module.

    ``own_user``: whom the proxy's own connections log in as; None is the default user.  ``expel(user)`` closes the
    sessions of a user who was deleted.
    """

    def __init__(self, sender: Sender, roster: Roster, own_user: str | None, expel: Callable[[str], None]) -> None:
        self.sender = sender
        self.roster = roster
        self._expel = expel
        self._own_user = name_of(own_user or DEFAULT)
        self.handlers: dict[bytes, Handler] = {
            b"acl|setuser": self._setuser,
            b"acl|deluser": self._deluser,
            b"acl|load": self._change,
            b"acl|log": self._log,
        }

    async def _setuser(self, call: Call) -> None:
        """A change that would cut the proxy off from the nodes is refused."""
        locks_out = call.args[2] == self._own_user and not {word.lower() for word in call.args[3:]} <= HARMLESS
        await (self._refuse(call) if locks_out else self._change(call, call.args[2]))

    async def _deluser(self, call: Call) -> None:
        locks_out = self._own_user in call.args[2:] and self._own_user != DEFAULT.encode()
        if locks_out:
            await self._refuse(call)
            return
        frame = await self._changed(call)
        with self.sender.plane.turn():
            self.sender.answer(call.request, frame)
            for user in call.args[2:] if not is_error(frame) else ():
                self._expel(text_of(user))  # though somebody may make the user anew at once

    async def _refuse(self, call: Call) -> None:
        text = b"ERR ACL %s of '%s' is refused by the proxy: its own connections to the nodes log in as that user"
        self.sender.answer(call.request, error(text % (call.args[1].upper(), self._own_user)))

    async def _change(self, call: Call, user: bytes | None = None) -> None:
        """``user``: whose rules change; None for those of several."""
        self.sender.answer(call.request, await self._changed(call, user))

    async def _changed(self, call: Call, user: bytes | None = None) -> bytes:
        async with self.roster.changing(user):
            replies = await self.sender.of_all_nodes(call)
        return self.sender.merged(call, replies)

    async def _log(self, call: Call) -> None:
        """The entries of all nodes, the newest first."""
        replies = await self.sender.of_all_nodes(call)
        frames = [frame for _, frame in replies]
        failed = next((frame for frame in frames if is_error(frame)), None)
        if failed is not None or not frames or not frames[0].startswith(b"*"):
            self.sender.answer(call.request, failed or self.sender.merged(call, replies))
            return
        entries = sorted((entry for frame in frames for entry in elements(frame)), key=_created, reverse=True)
        wanted = int(call.args[2]) if len(call.args) > 2 else LATEST
        self.sender.answer(call.request, array(entries[: max(0, wanted)]))


def _created(entry: bytes) -> int:
    """When an entry was made: milliseconds of the node's clock."""
    value = decode(entry)
    pairs: Sequence[tuple[bytes, object]]
    pairs = list(value.items()) if isinstance(value, dict) else list(zip(value[::2], value[1::2], strict=True))
    return next((int(str(each)) for name, each in pairs if name == b"timestamp-created"), 0)
