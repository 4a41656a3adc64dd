# What every kernel asks of its arguments; needs uintptr_t cimported before.

cdef inline bint apart(const void *a, size_t a_size, const void *b, size_t b_size) noexcept nogil:
    return <uintptr_t>a + a_size <= <uintptr_t>b or <uintptr_t>b + b_size <= <uintptr_t>a


cdef int require(bint fact, str problem) except -1:
    if not fact:
        raise ValueError(problem)
    return 0
