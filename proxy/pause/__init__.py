"""CLIENT PAUSE: who pauses until when, what that postpones, and the shards that are paused with it.

What lives here: the pauses of this proxy and of its peers as one (``board``), which calls a pause postpones
(``scope``), and the shards' own pauses, short and renewed (``shards``).  What may not: sessions, the calls that are
postponed and the way to other proxies (control's, ``proxy.control.pausing``).
"""

from proxy.pause.board import NO_PAUSE, Board, Mode, Pause
from proxy.pause.scope import MAY_REPLICATE, names_to_stop, no_writes, postpones
from proxy.pause.shards import ShardPauses

__all__ = [
    "MAY_REPLICATE",
    "NO_PAUSE",
    "Board",
    "Mode",
    "Pause",
    "ShardPauses",
    "names_to_stop",
    "no_writes",
    "postpones",
]
