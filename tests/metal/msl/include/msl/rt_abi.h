/* rt_abi.h: what compiled kernels and the CPU runtime agree on.
 *
 * Plain types only: kernels are compiled without the C++ standard library. The runtime owns every
 * object here; a kernel reads its lane and its SIMD-group and calls the functions at the end. */
#pragma once

#include "args.h"

#define MSL_MAX_THREADGROUP_BYTES 32768u
#define MSL_SIMD_WIDTH 32
/* Of metal::mem_flags. */
#define MSL_MEM_DEVICE 1
#define MSL_MEM_THREADGROUP 2
/* A library that reports every load and store (build.py, races=True). */
#ifndef MSL_RACES
#define MSL_RACES 0
#endif

struct msl_kernel {
    const char *name, *function;
    void (*entry)(void *const *args); /* runs one thread */
    const msl_arg *args;
    int nargs, max_threads;
};

/* A function constant: a variable of the library and whether it has been set. */
struct msl_fconst {
    const char *name;
    int index;
    void *value;
    unsigned size;
    unsigned char *defined;
};

/* Every kernel library exports one, `msl_this_module`. */
struct msl_module {
    const msl_kernel *(*kernel_at)(int i);
    int nkernels;
    const msl_fconst *fconsts;
    int nfconsts;
    int looks_for_races;
};

/* 32 threads that exchange values. `live`, `arrived` and `ready` have a bit for each lane. Values
 * are double-buffered by the lowest bit of `phase`: a lane may deposit for the next exchange while
 * another still reads the last one. */
struct msl_simdgroup {
    unsigned live, arrived, ready, phase;
    unsigned first, index; /* first: thread index of lane 0 */
    const char *op;        /* where the lanes that have arrived are */
    int line, mixed;       /* mixed: not all at one place */
    unsigned mask[2];      /* who took part */
    int done[2];           /* `shared` holds the exchange's result */
    alignas(64) char slot[2][MSL_SIMD_WIDTH][32];
    alignas(64) char shared[2][512];
};

struct msl_group {
    unsigned tg_pos[3], tgs[3], tpt[3], nominal_tpt[3], grid[3];
    unsigned nthreads, nsimd;
    void *const *args;
};

/* One Metal thread. */
struct msl_lane {
    void *stack_pointer; /* while it waits */
    msl_simdgroup *sg;
    msl_group *group;
    unsigned lane, index; /* in the SIMD-group, in the threadgroup */
    unsigned pos[3];      /* in the threadgroup */
    unsigned state;
    int stack; /* which stack it runs on, -1 before its first instruction */
    const char *op;
    int line; /* where it waits */
};

#ifdef __cplusplus
extern "C" {
#endif
/* The thread that runs now. */
extern thread_local msl_lane *msl_self __attribute__((tls_model("initial-exec")));

/* Meet the SIMD-group's other live lanes; returns who took part. */
unsigned msl_rt_arrive(const char *op, int line);
/* Meet the threadgroup's other threads; `flags` are metal::mem_flags. */
void msl_rt_barrier(int flags, int line);
void msl_rt_simdgroup_barrier(int line);
/* The threadgroup variable that `key` stands for: made at its first use in a dispatch. */
void *msl_rt_threadgroup(const void *key, unsigned size, unsigned align, const char *name);
#ifdef __cplusplus
}
#endif
