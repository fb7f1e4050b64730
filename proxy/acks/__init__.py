"""Acknowledgments: WAIT and WAITAOF, answered for what this session wrote and nothing else.

What lives here: incarnations (which life of a primary took a write), ticks (how a write is placed
in time against a sampled replication offset), rounds (one question to a shard for every session
that waits), and the two commands themselves.  What may not: sockets of clients, routing.

The rule of the room: a number is given only when it is proved.  Each shard's count is read first,
and behind it the primary's replication identity and its slots; if either is not what it was when
the session's writes were answered, there is no number but ``-UNBLOCKED`` and a closed connection.
A switchover that provably carried every byte over is the one exception: the life goes on elsewhere.

Some facts about the engine (Valkey 9.1, Redis 8.2) that the code leans on:

* ``WAIT`` counts for the connection it is sent on.  On a connection that wrote nothing it returns
  all replicas at once, so it can never be asked on behalf of others; offsets can.
* ``ROLE`` shows the primary's offset and what each online replica acknowledged.  Replicas speak once
  a second unless asked; ``WAIT 2147483647 0`` on a spare connection asks them (REPLCONF GETACK).
* GETACK's own 37 bytes enter the stream and are not counted in the replica's answer: the offset must
  be sampled before the question is put.
* What a replica has fsynced is told by ``WAITAOF`` alone, for the offset of the asking connection's
  last write: hence a marker, a write that changes nothing (``FUNCTION RESTORE`` of an empty payload).
* Valkey with ``appendfsync everysec`` acknowledges WAITAOF before the fsync: such a shard's answer is
  not passed on.
"""
