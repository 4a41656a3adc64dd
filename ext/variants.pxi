# The CPU variants of one kernel, for `standby._kernels.variants`: needs variant_t, `table`, VARIANTS
# and `supported` declared before.

cdef const variant_t *active = &table[max([i for i in range(VARIANTS) if supported(i)])]


def variants():
    return tuple([table[i].name.decode() for i in range(VARIANTS) if supported(i)])


def variant():
    return active.name.decode()


def select(str name not None):
    global active
    for i in range(VARIANTS):
        if supported(i) and table[i].name.decode() == name:
            active = &table[i]
            return
    raise ValueError(name)
