/* args.h: a kernel's parameters, as the CPU's and the CUDA backend bind them. Plain types only. */
#pragma once

enum { MSL_ARG_BUFFER, MSL_ARG_THREADGROUP, MSL_ARG_BUILTIN };

/* In the order of kernels.py's BUILTINS. */
enum {
    MSL_THREAD_POSITION_IN_GRID,
    MSL_THREADGROUP_POSITION_IN_GRID,
    MSL_THREAD_POSITION_IN_THREADGROUP,
    MSL_THREADS_PER_THREADGROUP,
    MSL_THREADGROUPS_PER_GRID,
    MSL_THREADS_PER_GRID,
    MSL_THREAD_INDEX_IN_THREADGROUP,
    MSL_THREAD_INDEX_IN_SIMDGROUP,
    MSL_SIMDGROUP_INDEX_IN_THREADGROUP,
    MSL_SIMDGROUPS_PER_THREADGROUP,
    MSL_THREADS_PER_SIMDGROUP,
    MSL_DISPATCH_THREADS_PER_THREADGROUP,
    MSL_THREAD_INDEX_IN_QUADGROUP,
    MSL_QUADGROUP_INDEX_IN_THREADGROUP,
    MSL_GRID_SIZE,
    MSL_GRID_ORIGIN
};

/* One kernel parameter. */
struct msl_arg {
    int kind, index; /* index: buffer slot, threadgroup slot or builtin */
    const char *name;
    unsigned size, align; /* of what it points to, or of the value */
    int is_reference, is_const, optional;
};
