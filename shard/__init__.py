"""The engine's processes: binary, configuration, start, form, watch, status.

What lives here: everything that knows how to run Valkey (or Redis) nodes on this machine and how to make a cluster of
them, plus the small control connection both packages speak to nodes with.
What may not: anything about clients, routing or acknowledgments; no import from ``proxy``. No home-made election,
replication or failure detection: those are the engine's, this package only starts processes and sends commands.
"""
