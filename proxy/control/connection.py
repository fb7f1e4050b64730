"""Commands about the connection itself, answered by the proxy."""

from __future__ import annotations

from proxy.codec import ParseTable
from proxy.codec.reply import OK, array, bulk, error, integer
from proxy.control.call import Call, Handler, Step
from proxy.control.permissions import Permissions
from proxy.control.sending import Sender
from proxy.control.versions import numbers
from proxy.sessions import clients, connection
from proxy.sessions.brake import Brake
from proxy.sessions.connection import Login
from proxy.sessions.session import Replies, Session
from proxy.topology.logins import DEFAULT, Logins, name_of, text_of
from proxy.topology.owners import Busy, Identity
from shard.client import ConnectionLost, ReplyError


class ConnectionCommands:
    """HELLO, AUTH, SELECT, RESET, QUIT, PING, ECHO, ROLE, CLIENT, ACL WHOAMI; and the sessions they are about."""

    def __init__(
        self, sender: Sender, doorkeeper: connection.Doorkeeper, logins: Logins, permissions: Permissions
    ) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.cluster = sender.cluster
        self.lanes = sender.lanes
        self.doorkeeper = doorkeeper
        self.logins = logins
        self.permissions = permissions
        self.brake = Brake()
        self.sessions: dict[int, Session] = {}
        self.unauthenticated: ParseTable | None = None
        """What a client may send before it has authenticated."""
        self.watched: ParseTable | None = None
        """For clients whose user may not do everything: parsing stops behind what is to be checked first."""
        self._databases: set[bytes] = {b"0"}
        self.handlers: dict[bytes, Handler] = {
            b"auth": self._auth,
            b"hello": self._hello,
            b"reset": self.reset,
            b"quit": self.quit,
            b"select": self._select,
            b"ping": self._ping,
            b"echo": self._echo,
            b"role": self._role,
            b"readonly": self._where_to_read,
            b"readwrite": self._where_to_read,
            b"acl|whoami": self._whoami,
            **{b"client|" + name: self._client for name in clients.HANDLED},
            b"client|reply": self._reply,
        }

    def _auth(self, call: Call) -> Step | None:
        """AUTH [username] password."""
        asked = connection.parse_auth(call.args, self.doorkeeper)
        if isinstance(asked, bytes):
            self.sender.answer(call.request, asked)
            return None
        return self._log_in(call, asked, protocol=None, name=None)

    def _hello(self, call: Call) -> Step | None:
        asked = connection.parse_hello(call.args)
        if isinstance(asked, bytes):
            self.sender.answer(call.request, asked)
        elif asked.login is not None:
            return self._log_in(call, asked.login, asked.protocol, asked.name)
        elif not call.session.authenticated:
            self.sender.answer(call.request, connection.HELLO_NOAUTH)
        else:
            self._say_hello(call, call.session.identity.user, asked.protocol, asked.name)
        return None

    def _log_in(self, call: Call, login: Login, protocol: int | None, name: bytes | None) -> Step | None:
        """AUTH, or a HELLO with it.  The default user's password is ours, where there is one; all else the engine's."""
        user, password = login
        if user != DEFAULT.encode():
            return self._ask_engine(call, login, protocol, name)
        if not self.doorkeeper.check(password):
            return self._wrong(call, connection.WRONGPASS)
        self._logged_in(call, user, protocol, name)
        return None

    async def _ask_engine(self, call: Call, login: Login, protocol: int | None, name: bytes | None) -> None:
        frame = await self.logins.check(*login)
        if frame == OK:
            session, (user, password) = call.session, login
            before, session.password = session.password, password
            self._logged_in(call, user, protocol, name)
            if session.identity.user != text_of(user):
                session.password = before  # there was no room for it
        elif frame.startswith(b"-WRONGPASS"):
            await self._wrong(call, frame)
        else:
            self.sender.answer(call.request, frame)

    async def _wrong(self, call: Call, frame: bytes) -> None:
        await self.brake.wrong(call.session.client.addresses()[0].rpartition(":")[0])
        self.sender.answer(call.request, frame)

    def _logged_in(self, call: Call, user: bytes, protocol: int | None, name: bytes | None) -> None:
        if call.command.name == b"hello":
            self._say_hello(call, text_of(user), protocol, name)
        elif self._become(call, call.session.identity._replace(user=text_of(user))):
            self._let_in(call.session)
            self.sender.answer(call.request, OK)

    def _say_hello(self, call: Call, user: str, protocol: int | None, name: bytes | None) -> None:
        """HELLO, once it is known who it is."""
        session = call.session
        wanted = session.identity.protocol if protocol is None else protocol
        if not self._become(call, session.identity._replace(user=user, protocol=wanted)):
            return
        self._let_in(session)
        session.name = session.name if name is None else name
        self.sender.answer(call.request, connection.hello_reply(session, self.engine()))

    def _let_in(self, session: Session) -> None:
        session.authenticated = True
        self.set_table(session)

    def set_table(self, session: Session) -> None:
        """How the session's requests are read: by what it may do."""
        if not session.authenticated:
            session.client.table = self.unauthenticated
        else:
            session.client.table = None if self.permissions.free(session) else self.watched

    def _become(self, call: Call, identity: Identity) -> bool:
        """Use the lanes of another identity.  Everything sent before is answered: a barrier brought us here.

        False: there are too many, and the call is answered so.
        """
        session = call.session
        try:
            self.sender.adopt(session, identity)
        except Busy as busy:
            self.sender.answer(call.request, error(str(busy)))
            return False
        return True

    def engine(self) -> connection.Engine:
        """The engine behind, by the oldest of its nodes."""
        nodes = [watch for watch in self.cluster.nodes.values() if watch.version]
        if not nodes:
            return connection.Engine(b"redis", b"0.0.0")
        oldest = min(nodes, key=lambda watch: numbers(watch.version))
        return connection.Engine(oldest.engine.encode(), oldest.version.encode())

    def reset(self, call: Call) -> None:
        """RESET: as if just connected (networking.c: resetCommand)."""
        if call.session.transaction is not None:
            call.session.transaction.end(clean=False)
        if call.session.subscriptions is not None:
            call.session.subscriptions.leave()
        call.session.name = b""
        call.session.forget_connection()
        self.lanes.greetings.pop(call.session.client.id, None)
        if call.session.replies is Replies.OFF:
            self._speak(call)
        call.session.authenticated = self.doorkeeper.open
        if self._become(call, Identity(DEFAULT, 0, 2)):
            self.set_table(call.session)
            self.sender.answer(call.request, b"+RESET\r\n")

    def quit(self, call: Call) -> None:
        self.sender.answer_last(call.request, OK)

    async def _select(self, call: Call) -> None:
        """SELECT: what a shard says to it on a connection of its own decides."""
        asked = call.args[1]
        if asked not in self._databases:
            try:
                node = self.cluster.primary(self.sender.any_shard())
                if node is None:
                    raise ConnectionLost("no shard has a primary")
                async with await self.cluster.connect(node.host, node.port) as probe:
                    await probe.call("SELECT", asked)
            except ReplyError as refused:
                self.sender.answer(call.request, error(str(refused)))
                return
            except ConnectionLost as problem:
                text = f"CLUSTERDOWN SELECT could not be checked ({problem}): try again"
                self.sender.answer(call.request, error(text))
                return
            self._databases.add(asked)
        if self._become(call, call.session.identity._replace(database=int(asked))):
            self.sender.answer(call.request, OK)

    def _ping(self, call: Call) -> None:
        if len(call.args) > 2:
            self.sender.answer(call.request, b"-ERR wrong number of arguments for 'ping' command\r\n")
            return
        self.sender.answer(call.request, connection.ping(call.session, call.args))

    def _echo(self, call: Call) -> None:
        self.sender.answer(call.request, bulk(call.args[1]))

    def _role(self, call: Call) -> None:
        """To its clients the proxy is a primary without replicas of its own."""
        self.sender.answer(call.request, array([bulk(b"master"), integer(0), array([])]))

    def _where_to_read(self, call: Call) -> None:
        """READONLY, READWRITE: leave to read from a replica, which is not made use of (Valkey, standalone: OK, too)."""
        self.sender.answer(call.request, OK)

    def _client(self, call: Call) -> None:
        self.sender.answer(call.request, clients.client(call.session, list(self.sessions.values()), call.args))

    def _reply(self, call: Call) -> None:
        """CLIENT REPLY ON|OFF|SKIP (networking.c: clientReplyCommand): replies are kept back here, never on a lane."""
        wanted = call.args[2].lower()
        session = call.session
        if wanted == b"on":
            self._speak(call)
        elif wanted == b"off" or (wanted == b"skip" and session.replies is Replies.OFF):
            session.replies = Replies.OFF
            session.unheard.add(call.request)
        elif wanted == b"skip":
            session.replies = Replies.SKIP_NEXT
            session.unheard.add(call.request)
        else:
            self.sender.answer(call.request, b"-ERR syntax error\r\n")
            return
        self.sender.answer(call.request, OK)

    @staticmethod
    def _speak(call: Call) -> None:
        """Let replies be heard again, beginning with this one."""
        call.session.replies = Replies.ON
        call.session.unheard.discard(call.request)

    def _whoami(self, call: Call) -> None:
        self.sender.answer(call.request, bulk(name_of(call.session.identity.user)))
