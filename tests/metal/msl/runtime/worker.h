/* worker.h: one operating-system thread's share of a dispatch, a threadgroup at a time.
 *
 * Internal to the runtime. A Metal thread starts on whatever stack is running and keeps it; only
 * one that waits (for its SIMD-group or at a barrier) needs a stack of its own, so kernels without
 * either run as plain calls. msl_rt.cpp schedules, msl_dispatch.cpp hands out threadgroups. */
#pragma once

#include "msl_rt.h"
#include "races.h"
#include "rt_abi.h"
#include <string>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MSL_ASAN 1
#endif
#endif
#ifndef MSL_ASAN
#define MSL_ASAN 0
#endif

namespace msl_rt
{

constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxSimdgroups = kMaxThreads / MSL_SIMD_WIDTH;
/* Threadgroup variables of one kernel; Metal has no limit but their bytes. */
constexpr uint32_t kMaxVariables = 64;
/* Under AddressSanitizer each variable is followed by this many bytes that nobody may touch. */
constexpr uint32_t kRedZone = MSL_ASAN ? 64 : 0;
constexpr uint32_t kArena =
    MSL_MAX_THREADGROUP_BYTES + (kMaxVariables + MSL_MAX_BINDINGS) * (kRedZone + 64);

enum State : unsigned { READY, AT_SIMD, AT_BARRIER, EXITED };
enum class Order { ascending, descending, random };

/* What the environment says (msl_rt.h). */
struct Options {
    Order order = Order::ascending;
    uint64_t seed = 1;
    bool relaxed = false;
    unsigned threads = 0;
    size_t stack_bytes = 64 << 10;
    Options();
};

class Worker
{
  public:
    Worker();
    ~Worker();
    Worker(const Worker &) = delete;

    /* Start a dispatch; arguments from `info`. False with an error if they cannot be laid out. */
    bool begin(const msl_kernel *kernel, const msl_dispatch_info &info, const Options &options);
    /* Run threadgroup (x, y, z) to its end or its first error. */
    void run_group(const uint32_t position[3]);

    void fail(const char *format, ...) __attribute__((format(printf, 2, 3)));
    const std::string &error() const { return error_; }

    /* What a running thread asks for. */
    unsigned arrive(const char *op, int line);
    void barrier(int flags, int line);
    void *threadgroup_variable(const void *key, unsigned size, unsigned align, const char *name);
    /* What a library that looks for races reports. */
    void touched(const void *address, uint32_t size, bool writes);
    /* A stack's whole life: thread after thread, from msl_self on. */
    void run_threads();
#if MSL_ASAN
    void entered_stack();
#endif

    msl_stats stats{};

  private:
    /* A threadgroup variable, or with a null key a [[threadgroup(n)]] argument. */
    struct Variable {
        const void *key;
        uint32_t offset, size;
        const char *name;
    };

    void place_group(const uint32_t position[3]);
    void place_threads();
    msl_lane *next(unsigned simdgroup);
    msl_lane *ready_lane(unsigned simdgroup);
    uint32_t pick(uint32_t ready);
    bool release_barrier();
    bool release_some_of_a_divergent_simdgroup();
    void explain_deadlock();
    void release(msl_simdgroup &group, uint32_t lanes);
    bool is_complete(const msl_simdgroup &group) const;
    void compare_places(msl_simdgroup &group, const char *op, int line);
    msl_lane *first_in(State state);
    bool is_shared(uintptr_t address, bool *in_arena, const char **name, uintptr_t *offset) const;

    void wait(msl_lane *lane);
    void resume(msl_lane *to, void **save, int from_stack, bool for_good);
    int take_stack();
    char *stack_bottom(int stack) { return stacks_ + (size_t)stack * stack_bytes_; }
    void *fresh_context(int stack);
    char *reserve(const void *key, uint32_t bytes, uint32_t align, const char *name);

    Options options_;
    const msl_kernel *kernel_ = nullptr;
    const msl_dispatch_info *info_ = nullptr;
    std::vector<void *> args_;
    msl_group group_{};
    msl_lane lanes_[kMaxThreads];
    msl_simdgroup simdgroups_[kMaxSimdgroups];
    uint32_t live_ = 0, at_barrier_ = 0;
    uint64_t random_ = 1;

    RaceTable device_races_, threadgroup_races_;
    uint32_t groups_run_ = 0;
    int barrier_flags_ = 0; /* of the barrier that threads wait at */
    uint32_t device_barriers_ = 0, threadgroup_barriers_ = 0;
    uint32_t simd_barriers_[kMaxSimdgroups] = {};

    std::string error_;

    char *stacks_ = nullptr;
    size_t stack_bytes_ = 0;
    std::vector<int> free_stacks_;
    int stacks_taken_ = 0, stacks_guarded_ = 0;
    void *main_stack_pointer_ = nullptr;
    void *abandoned_ = nullptr; /* the stack pointer of a stack that nobody comes back to */

    alignas(64) char arena_[kArena];
    uint32_t arena_used_ = 0;        /* bytes of arena_, red zones included */
    uint32_t threadgroup_bytes_ = 0; /* as Metal counts them */
    Variable variables_[kMaxVariables + MSL_MAX_BINDINGS];
    uint32_t variable_count_ = 0;

#if MSL_ASAN
    /* What AddressSanitizer keeps of a stack while nobody runs on it; the last is the worker's. */
    void *fake_stacks_[kMaxThreads + 1] = {};
    const void *main_bottom_ = nullptr;
    size_t main_size_ = 0;
#endif
};

/* The worker that this operating-system thread is, null between dispatches. */
extern thread_local Worker *current_worker __attribute__((tls_model("initial-exec")));

} // namespace msl_rt
