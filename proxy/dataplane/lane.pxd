# The types of lane.py where it is compiled: see setup.py.
cimport cython

from proxy.dataplane.base cimport Handler, Plane, Traffic
from proxy.dataplane.requests cimport Batch, Hold, Request, Run, Sample

cdef int READABLE
cdef int WRITABLE
cdef int ENDED


cdef class Lane(Handler):
    cdef public Plane plane
    cdef public Traffic traffic
    cdef public object owner
    cdef public object stamp
    cdef public object sock
    cdef public object fifo
    cdef public int shard
    cdef public int fd
    cdef public double since
    cdef public bint closed
    cdef public bint pushes
    cdef public bint dirty
    cdef public Run tail
    cdef public list out
    cdef public Py_ssize_t held_bytes
    cdef public dict open_holds
    cdef public long long taken
    cdef public long long sent
    cdef public Sample sample
    cdef public double sample_at
    cdef Py_ssize_t _candidates
    cdef object _unsent
    cdef object _state
    cdef int _mask
    cdef list _ahead
    cdef bytearray _buffer
    cdef Py_ssize_t _begin
    cdef Py_ssize_t _end
    cdef Py_ssize_t _missing

    @cython.locals(hold=Hold)
    cpdef Hold hold(self, int concern)
    cpdef bint watches(self, bytes frame) except -1
    cpdef bint is_write(self, int command_id) except -1
    @cython.locals(sample=Sample)
    cpdef choose(self, entry, Batch batch, Py_ssize_t index, bint traced)
    @cython.locals(sample=Sample)
    cdef _sample_sent(self)
    @cython.locals(sample=Sample)
    cdef _sample_replied(self)
    cpdef forget_sample(self)
    cpdef soil(self)
    @cython.locals(out=list)
    cpdef flush(self)
    @cython.locals(count=Py_ssize_t)
    cdef _send(self, data)
    cpdef on_event(self, int mask)
    @cython.locals(count=Py_ssize_t, consumed=Py_ssize_t, frames=list)
    cdef _receive(self)
    @cython.locals(left=Py_ssize_t, cut=Py_ssize_t)
    cdef _keep(self, Py_ssize_t consumed, state)
    cdef _make_room(self, Py_ssize_t left)
    cdef _complete(self, list frames)
    @cython.locals(replies=list, frame=bytes)
    cdef list _without_pushes(self, list frames)
    @cython.locals(run=Run, at=Py_ssize_t, count=Py_ssize_t)
    cdef _deliver(self, list frames)
