# The types of requests.py where it is compiled: see setup.py.
cimport cython

from proxy.dataplane.base cimport Party
from proxy.dataplane.tally cimport Tally


cdef class Batch:
    cdef public Party client
    cdef public list commands
    cdef public list replies
    cdef public Py_ssize_t missing
    cdef public Py_ssize_t sent
    cdef public double born
    cdef public Tally tally

    @cython.locals(tally=Tally, seconds=double)
    cpdef fill(self, Py_ssize_t index, bytes frame, int command_id)
    @cython.locals(client=Party)
    cpdef answered(self, Py_ssize_t count)


cdef class Sample:
    cdef public object entry
    cdef public Batch batch
    cdef public Batch place_batch
    cdef public object lane
    cdef public object stamp
    cdef public Py_ssize_t index
    cdef public Py_ssize_t place_index
    cdef public int shard
    cdef public int command_id
    cdef public bint traced
    cdef public long long mark
    cdef public double born
    cdef public double handed
    cdef public double replied
    cdef public double relayed


cdef class Hold:
    cdef public object lane
    cdef public object first
    cdef public object last
    cdef public int shard
    cdef public int concern
    cdef public double born
    cdef list _places
    cdef list _indexes
    cdef list _frames

    @cython.locals(client=Party)
    cpdef add(self, place, Py_ssize_t index, bytes frame)


cdef class Request:
    cdef public object client
    cdef public object raw
    cdef public int slot
    cdef public int command_id
    cdef public int attempts
    cdef public object mended
    cdef public int concern
    cdef public bint barrier
    cdef public bint write
    cdef public double born

    cpdef answer(self, bytes frame)
    cpdef kept(self)
    cpdef bint did_nothing(self, bytes frame)
    cpdef Py_ssize_t deliver(self, list frames, Py_ssize_t at, object lane) except -1


cdef class Place(Request):
    cdef public Batch batch
    cdef public Py_ssize_t index


cdef class Submitted(Request):
    cdef public object on_reply
    cdef public object on_kept
    cdef public bint pinned


cdef class Joined(Batch):
    cdef public object join
    cdef public Place place


cdef class Run:
    cdef public Batch batch
    cdef public int concern
    cdef public list indexes
    cdef public Py_ssize_t pos
    cdef public bint write

    @cython.locals(batch=Batch, replies=list, indexes=list, pos=Py_ssize_t, end=Py_ssize_t, taken=Py_ssize_t,
                   index=Py_ssize_t, frame=bytes, hold=Hold, tally=Tally, seconds=double, bucket=cython.int,
                   commands=list, client=Party)
    cpdef Py_ssize_t deliver(self, list frames, Py_ssize_t at, object lane) except -1


cdef class Skip:
    cdef public Py_ssize_t size
    cdef public double born

    cpdef Py_ssize_t deliver(self, list frames, Py_ssize_t at, object lane) except -1
