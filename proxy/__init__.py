"""The client-facing side of Ackgate.

What lives here: everything between a client's socket and the shards' sockets, each concern in a room (package) of its
own: ``codec``, ``dataplane``, ``routing``, ``acks``, ``sessions``, ``topology``, ``observe``, and on top of them
``server``, ``settings`` and ``cli``. What may not: starting, forming or watching engine processes. That is the
package ``shard``, which ``proxy`` may import and never the other way. Imports inside point one way: codec <-
dataplane <- (routing, acks, sessions, topology) <- server <- cli.
"""

__version__ = "0.1.0"
