"""What can be seen of the proxy from outside: metrics, health, readiness, topology, traces, logs.

What lives here: turning figures that other rooms keep into metric families and HTTP answers, following the writes of
clients that ask for it (traces), and setting up the log. What may not: keeping those figures (each room counts its own)
or anything that runs on the data path. A scrape reads, the data path never calls in here.
"""
