/* msl_rt.h: run compiled .metal kernels on this machine's CPU.
 *
 * The host's side of the CPU runtime, for Python through ctypes and for the simulated Metal device.
 * A library is what `mslc.py build` wrote. The caller owns every buffer and keeps it alive and
 * unmoved through msl_dispatch(), which returns when all threads of the grid are done; dispatches
 * of one library may not overlap a change of its function constants.
 *
 * The environment steers a run, read at each dispatch, so that a test can try schedules:
 *   MSL_ORDER=asc|desc|random[:seed]  which thread of a threadgroup runs first
 *   MSL_THREADS=n    threadgroups at a time; default: one a CPU
 *   MSL_STACK_KB=n   stack of a Metal thread, default 64; read when a worker starts
 *   MSL_RELAXED=1    allow SIMD functions in divergent control flow and barriers after an exit */
#ifndef MSL_RT_H
#define MSL_RT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MSL_MAX_BINDINGS 31

typedef struct msl_library msl_library;

typedef struct {
    void *ptr;     /* NULL: not bound */
    size_t length; /* bytes that may be read behind ptr */
} msl_binding;

typedef struct {
    uint32_t grid[3];                      /* threads if threads_mode, else threadgroups */
    uint32_t tpt[3];                       /* threads a threadgroup */
    int threads_mode;                      /* 1: dispatchThreads: (ragged edge groups) */
    msl_binding buffers[MSL_MAX_BINDINGS]; /* by [[buffer(n)]] */
    uint32_t tg_length[MSL_MAX_BINDINGS];  /* setThreadgroupMemoryLength:atIndex: */
} msl_dispatch_info;

/* Load a kernel library; NULL with a text in err (errn bytes) if it cannot be loaded. */
msl_library *msl_library_open(const char *path, char *err, size_t errn);

/* Kernels, by their host names. */
int msl_library_count(msl_library *library);
const char *msl_library_name(msl_library *library, int kernel);
int msl_library_find(msl_library *library, const char *name); /* -1: none */

/* The most threads a threadgroup of the kernel may have. */
int msl_kernel_max_threads(msl_library *library, int kernel);
int msl_kernel_nargs(msl_library *library, int kernel);

/* An argument's name; out: kind (0 buffer, 1 threadgroup, 2 builtin), index, size and alignment of
 * what it points to, is a reference, is const. */
const char *msl_kernel_arg(msl_library *library, int kernel, int argument, int out[6]);

/* Function constants. A library has one set of values, which every kernel reads as variables. */
int msl_library_nconstants(msl_library *library);
const char *msl_library_constant(msl_library *library, int i, int out[2]); /* out: index, size */

/* Set a constant by name, or by index if name is NULL. 0; -1: no such constant; -2: wrong size. */
int msl_library_set_constant(msl_library *library, int index, const char *name, const void *value,
                             size_t size);
void msl_library_clear_constants(msl_library *library);

/* Run a grid. 0, or -1 with a text in err: what Metal's validation would refuse (a missing or short
 * buffer, too many threads), divergence, threads at different barriers, a race if the library was
 * built with races=True, too much threadgroup memory. */
int msl_dispatch(msl_library *library, int kernel, const msl_dispatch_info *info, char *err,
                 size_t errn);

/* Of the last dispatch that ended, in the whole process. */
typedef struct {
    uint64_t switches; /* between fibers */
    uint64_t threads;
    uint64_t barriers;
    uint64_t simd_ops; /* meetings of a SIMD-group */
    uint64_t tg_bytes; /* threadgroup memory in use */
} msl_stats;
void msl_last_stats(msl_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
