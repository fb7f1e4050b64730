"""How fast the proxy is, next to others, on this machine: ``make bench``, ``make profile WORKLOAD=...``.

What lives here: the proxies that are compared (``fleet``, ``targets``), what they are asked to do (``workloads``), the
clients that ask it (``load``, ``mixed``, ``idle``; for acknowledgments ``acks``, ``pairs``), what is read of the
processes meanwhile (``measure``), the rounds (``rounds``, ``samples``), what comes of them (``report``) and where the
proxy spends its time (``profile``).
What may not: tests (pytest collects nothing here), or anything the product would have to know about. Ackgate is started
by its own commands and looked at from outside, like every other target.

The figure to trust is the CPU a proxy spends on one command, and its ratio to another proxy's within one round: load,
proxy and shards share the machine, so that operations a second say as much about the machine as about the proxy.
"""
