# The types of client.py where it is compiled: see setup.py.
cimport cython

from proxy.dataplane.base cimport Party, Plane
from proxy.dataplane.lane cimport Lane
from proxy.dataplane.requests cimport Batch, Joined, Place, Run, Sample

cdef int READABLE
cdef int WRITABLE
cdef int HUNG_UP
cdef int ENDED
cdef Py_ssize_t SLOW


cdef class Client(Party):
    cdef public object sock
    cdef public object session
    cdef public object mode
    cdef public object table
    cdef public object batches
    cdef public dict writes
    cdef public object lanes  # a list, or of a class derived from it
    cdef public list out
    cdef public int fd
    cdef public long long id
    cdef public bint closed
    cdef public int concern
    cdef public Py_ssize_t pending_bytes
    cdef public Py_ssize_t out_bytes
    cdef public double last_read
    cdef public Sample sample
    cdef public bint traced
    cdef public bint subscriber
    cdef object _unsent
    cdef double _over_since
    cdef int _keeping
    cdef list _late
    cdef Py_ssize_t _late_bytes
    cdef object _state
    cdef Place _barrier
    cdef list _ahead
    cdef list _chunks
    cdef bint _stopped
    cdef bint _fenced
    cdef bint _eof
    cdef bint _gone
    cdef bint _draining
    cdef int _mask
    cdef Py_ssize_t _ahead_bytes
    cdef Py_ssize_t _buffered
    cdef Py_ssize_t _need

    cpdef on_event(self, int mask)
    @cython.locals(stamps=list)
    cpdef wrote(self, Lane lane)
    cpdef int concern_of(self, bytes raw) except? -1
    cpdef fence(self)
    @cython.locals(data=bytes, plane=Plane)
    cdef _receive(self)
    @cython.locals(buffer=bytes, rest=bytes, consumed=Py_ssize_t, commands=list)
    cpdef process(self)
    cdef Py_ssize_t _complete(self, list commands) except -1
    cpdef advance(self)
    @cython.locals(plane=Plane, kept=Py_ssize_t)
    cdef bint _full(self) except -1
    @cython.locals(batch=Batch, count=Py_ssize_t, index=Py_ssize_t, slot=cython.int, plane=Plane)
    cdef _dispatch(self, list commands)
    @cython.locals(shard_of_slot=list, flags=bytes, index=Py_ssize_t, slot=cython.int, command_id=cython.int,
                   raw=bytes, lane=Lane, run=Run, plane=Plane, write=bint, concern=cython.int)
    cdef _route(self, Batch batch)
    cdef bint _split(self, Batch batch, Py_ssize_t index) except -1
    cdef _hand_over(self, Batch batch, Py_ssize_t index, int slot)
    @cython.locals(place=Place)
    cdef _try_barrier(self)
    cpdef settle(self)
    @cython.locals(batch=Batch, out=list, replies=list, before=Py_ssize_t, at=Py_ssize_t)
    cdef _collect(self)
    @cython.locals(count=Py_ssize_t)
    cdef _send(self, data)
    @cython.locals(batch=Batch)
    cdef _sample_relayed(self, Sample sample)
    cdef _send_rest(self)
    cpdef push(self, bytes frame)
    @cython.locals(place=Place, batch=Batch, note=Batch, alone=Batch)
    cpdef push_behind(self, bytes frame)
    @cython.locals(plane=Plane, size=Py_ssize_t)
    cpdef bint bound_output(self) except? -1
    cpdef update_interest(self)
    cpdef close(self)


@cython.locals(client=Client)
cpdef push_all(list clients, bytes frame)
