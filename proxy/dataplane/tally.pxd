# The types of tally.py where it is compiled: see setup.py.
cimport cython

cdef int BUCKETS
cdef int MINUS


cdef class Row:
    cdef public long long[18] counts  # BUCKETS of them
    cdef public double seconds
    cdef public dict errors

    cdef count_error(self, bytes frame)


cdef class Tally:
    cdef double[17] bounds  # as many as BOUNDS
    cdef public int highest
    cdef public list rows

    @cython.locals(gone=Row, nameless=Row, at=cython.int)
    cpdef forget(self, int command_id)
    cpdef Row row(self, int command_id)
    @cython.locals(at=cython.int, last=cython.int)
    cpdef int bucket(self, double seconds)
    @cython.locals(row=Row)
    cpdef add(self, int command_id, int bucket, double seconds, bytes frame)


cdef class Widths:
    cdef public list counts
    cdef public long long total

    @cython.locals(at=cython.int, end=cython.int)
    cpdef add(self, int width)
