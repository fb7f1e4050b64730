"""Control: what happens to a command that is not plain.

What lives here: the one place where a command is looked up and sent its way (``router``), what the data plane may do
without it (``vocabulary``), what may not or cannot pass (``policy``), putting requests on lanes by the engine's
policies (``sending``), and one file for each family of commands that have a way of their own.  What may not: sockets,
the slot map, what an acknowledgment is; those rooms are asked.

A command with a way of its own is one row in its family's ``handlers``; every other goes by the engine's hints.
"""
