"""The planned change of a shard's primary, at which no client sees an error.

What lives here: which shard and which replica are meant (``choice``), the order of the steps, the bound on the stall
and the way back (``procedure``), one switchover at a time and what is told of it (``switchovers``).  What may not: how
one node is paused, levelled or promoted (``shard.handover``), what becomes of commands meanwhile (``proxy.topology``),
whether numbers go on (``proxy.acks``).
"""
