"""The data plane: sockets, buffers and order.

What lives here: every client socket and every lane, one ``select.epoll`` for all of them, the
order of each client's replies, back-pressure, and the counters of all that.  It is synchronous
and never blocks; one trio task awaits the epoll's descriptor and calls :meth:`DataPlane.run_once`.

What may not: topology, policies, retries, timers, trio.  What the data plane may route on its own
comes to it as data (the parse table and ``shard_of_slot``); everything else it hands to control
(:class:`Control`) and is told what to do.  Clients, lanes and requests cross that line as opaque
handles: control passes them back and keeps its own state in ``client.session``, nothing more, so
that a native data plane can take this one's place.

The rules that make it fast, measured: no await between receiving and sending a plain command; one
object per read, not per command; one send per client and per lane in a turn.

Where there was a C compiler on installation, ``tally``, ``base``, ``requests``, ``lane``,
``client`` and ``plane`` are compiled from these same files, with the types that the .pxd files
give (IMPLEMENTATION tells).  A field that is new is to be named in the .pxd, too.
"""

from proxy.dataplane import client as _client
from proxy.dataplane.client import Client
from proxy.dataplane.contract import BARRIER, READONLY, WRITE, Control, Handed, Limits, Lost, Mode
from proxy.dataplane.lane import Lane
from proxy.dataplane.plane import DataPlane
from proxy.dataplane.requests import Hold, Request, Sample, Submitted
from proxy.dataplane.tally import BOUNDS, ERRORS, OTHER, WIDTHS, Row, Tally, Widths

IMPLEMENTATION = "python" if str(_client.__file__).endswith(".py") else "cython"
"""The form in which the data plane runs, "cython" or "python"."""

__all__ = [
    "BARRIER",
    "BOUNDS",
    "ERRORS",
    "IMPLEMENTATION",
    "OTHER",
    "READONLY",
    "WIDTHS",
    "WRITE",
    "Client",
    "Control",
    "DataPlane",
    "Handed",
    "Hold",
    "Lane",
    "Limits",
    "Lost",
    "Mode",
    "Request",
    "Row",
    "Sample",
    "Submitted",
    "Tally",
    "Widths",
]
