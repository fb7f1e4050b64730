"""Commands about the connection itself, answered by the proxy."""

from __future__ import annotations

from proxy.codec import ParseTable
from proxy.codec.reply import OK, array, bulk, error, integer
from proxy.control.call import Call, Handler
from proxy.control.sending import Sender
from proxy.control.versions import numbers
from proxy.sessions import clients, connection
from proxy.sessions.session import Replies, Session
from proxy.topology.lanes import Identity
from shard.client import ConnectionLost, ReplyError


class ConnectionCommands:
    """HELLO, AUTH, SELECT, RESET, QUIT, PING, ECHO, ROLE, CLIENT, ACL WHOAMI; and the sessions they are about."""

    def __init__(self, sender: Sender, doorkeeper: connection.Doorkeeper) -> None:
        self.sender = sender
        self.plane = sender.plane
        self.cluster = sender.cluster
        self.lanes = sender.lanes
        self.doorkeeper = doorkeeper
        self.sessions: dict[int, Session] = {}
        self.unauthenticated: ParseTable | None = None
        """What a client may send before it has authenticated."""
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

    def _auth(self, call: Call) -> None:
        frame = connection.auth(call.session, self.doorkeeper, call.args)
        if call.session.authenticated:
            call.session.client.table = None
        self.sender.answer(call.request, frame)

    def _hello(self, call: Call) -> None:
        asked = connection.parse_hello(call.args)
        refused = asked if isinstance(asked, bytes) else connection.hello(call.session, self.doorkeeper, asked)
        if call.session.authenticated:
            call.session.client.table = None
        if refused is not None:
            self.sender.answer(call.request, refused)
            return
        if isinstance(asked, connection.Hello) and asked.protocol is not None:
            self._become(call.session, call.session.identity._replace(protocol=asked.protocol))
        self.sender.answer(call.request, connection.hello_reply(call.session, self.engine()))

    def _become(self, session: Session, identity: Identity) -> None:
        """Use the lanes of another identity.  Everything sent before is answered: a barrier brought us here."""
        self.sender.adopt(session, identity)

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
        call.session.name = b""
        if call.session.replies is Replies.OFF:
            self._speak(call)
        call.session.authenticated = self.doorkeeper.open
        call.session.client.table = None if call.session.authenticated else self.unauthenticated
        self._become(call.session, Identity("default", 0, 2))
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
        self._become(call.session, call.session.identity._replace(database=int(asked)))
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
        self.sender.answer(call.request, bulk(call.session.identity.user.encode()))
