"""Peers: what proxies in front of one cluster tell each other, over the engine's own pub/sub.

What lives here: messages and their authenticity (``messages``), the connections that carry them and who is there
(``bus``).  What may not: what any of it means; each room that has something to tell registers it (``Peers.topic``).

There is no store and no leader.  Every message holds all that its proxy has to tell, so one that is lost, late or
doubled does no harm: the next one says it again.
"""

from proxy.peers.bus import Peers
from proxy.peers.messages import derive

__all__ = ["Peers", "derive"]
