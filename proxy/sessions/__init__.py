"""Sessions: what belongs to one client connection.

What lives here: a session's state (name, user, database, protocol, transaction), the commands that read or
change it, and transactions on leased lanes.  What may not: sockets and order (the data plane's), how a
command finds its shards (routing).
"""
