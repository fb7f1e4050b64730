# The types of base.py where it is compiled: see setup.py.
from proxy.dataplane.tally cimport Tally, Widths


cdef class Counters:
    cdef public long long accepted
    cdef public long long bytes_in
    cdef public long long bytes_out
    cdef public long long commands
    cdef public long long lane_losses
    cdef public long long protocol_errors
    cdef public long long pushes
    cdef public long long refused
    cdef public long long shard_bytes_in
    cdef public long long shard_bytes_out
    cdef public long long splits
    cdef public long long subscribers_cut


cdef class Traffic:
    cdef public long long bytes_in
    cdef public long long bytes_out
    cdef public long long connects
    cdef public long long losses


cdef class Handler:
    cpdef on_event(self, int mask)


cdef class Plane:
    cdef public object control
    cdef public object limits
    cdef public object watched
    cdef public object epoll
    cdef public object table
    cdef public object splitters
    cdef public Counters counters
    cdef public dict traffic
    cdef public Tally tally
    cdef public Widths split_parts
    cdef public bytes command_flags
    cdef public list shard_of_slot
    cdef public list dirty_lanes
    cdef public list dirty_clients
    cdef public list ready
    cdef public list holds
    cdef public object concern_of
    cdef public list samples
    cdef public list errands
    cdef public double sample_every
    cdef public double now
    cdef public Py_ssize_t pending_bytes
    cdef public Py_ssize_t max_query
    cdef public Py_ssize_t max_commands
    cdef public Py_ssize_t max_bytes
    cdef public Py_ssize_t max_total
    cdef public Py_ssize_t max_output
    cdef public Py_ssize_t max_pushed
    cdef public Py_ssize_t soft_pushed
    cdef public double soft_seconds


cdef class Party(Handler):
    cdef public Plane plane
    cdef public bint dirty
    cdef public Py_ssize_t kept_bytes
    cdef public Py_ssize_t pending
