"""What may not pass (dangerous commands) and what cannot yet: each gets a clear error, never a wrong answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxy.codec.reply import error
from proxy.routing import Command

DANGEROUS = frozenset(
    {
        *(b"replicaof", b"slaveof", b"shutdown", b"debug", b"sync", b"psync", b"replconf", b"failover", b"migrate"),
        *(b"module|load", b"module|loadex", b"module|unload", b"save", b"bgsave", b"bgrewriteaof"),
        *(b"restore-asking", b"pfdebug", b"pfselftest"),
        *(b"cluster|addslots", b"cluster|addslotsrange", b"cluster|bumpepoch", b"cluster|delslots"),
        *(b"cluster|delslotsrange", b"cluster|failover", b"cluster|flushslots", b"cluster|flushslot"),
        *(b"cluster|forget", b"cluster|meet", b"cluster|replicate", b"cluster|reset", b"cluster|saveconfig"),
        *(b"cluster|set-config-epoch",),
        *(b"cluster|setslot", b"cluster|migrateslots", b"cluster|cancelslotmigrations", b"cluster|syncslots"),
    }
)
"""They would break the cluster under the proxy's feet; ``commands.allow`` lets them through."""

PROTECTED_SETTINGS = (
    *(b"bind", b"port", b"tls-port", b"unixsocket", b"protected-mode", b"requirepass", b"masterauth", b"primaryauth"),
    *(b"masteruser", b"primaryuser", b"replicaof", b"slaveof", b"dir", b"dbfilename", b"aclfile", b"appenddirname"),
    *(b"appendfilename", b"cluster-config-file", b"cluster-enabled", b"cluster-port", b"maxclients"),
    *(b"cluster-announce-", b"replica-announce-", b"slave-announce-", b"rename-command"),
)
"""Settings by which CONFIG SET would cut the nodes off from the proxy or from one another."""

LATER = frozenset(
    {
        *(b"script|debug",),
    }
)
"""What has no right answer yet gets an error that says so."""

NO_CLUSTER = b"-ERR This instance has cluster support disabled\r\n"
CLUSTER_ANSWERED = frozenset({b"cluster|keyslot", b"cluster|help", b"cluster|slot-stats"})
OF_A_CLUSTER_CLIENT = frozenset({b"asking", b"clusterscan"})


class Policy:
    """What may pass.  ``allow``: names of dangerous commands let through, as ``"debug"`` or ``"cluster|failover"``."""

    def __init__(self, allow: Iterable[str]) -> None:
        self._allow = frozenset(name.lower().replace(" ", "|").encode() for name in allow)

    def refusal(self, command: Command, args: Sequence[bytes]) -> bytes | None:
        """The error for what may not or cannot pass; None for everything else."""
        container = command.name.partition(b"|")[0]
        if command.name in self._allow or container in self._allow:
            return None
        if command.name in DANGEROUS or container in DANGEROUS:
            return error(
                b"ERR '%s' is refused by the proxy because it could break the cluster behind it; "
                b"an administrator may allow it (commands.allow)" % command.name.replace(b"|", b" ")
            )
        if command.name in LATER or container in LATER:
            return not_supported(command)
        if command.name in OF_A_CLUSTER_CLIENT or (container == b"cluster" and command.name not in CLUSTER_ANSWERED):
            return NO_CLUSTER
        if command.name == b"config|set":
            return self._protected(args)
        return None

    @staticmethod
    def _protected(args: Sequence[bytes]) -> bytes | None:
        for name in args[2::2]:
            if name.lower().startswith(PROTECTED_SETTINGS):
                text = b"ERR CONFIG SET failed - '%s' is refused by the proxy: it would cut off nodes"
                return error(text % name[:64])
        return None


def not_supported(command: Command) -> bytes:
    name = command.name.replace(b"|", b" ")
    return error(b"ERR '%s' is not supported by the proxy yet" % name)
