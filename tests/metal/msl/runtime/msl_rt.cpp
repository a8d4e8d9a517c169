/* msl_rt.cpp: schedules the threads of one threadgroup on the stacks of one worker.
 *
 * A thread runs until it waits or returns, so threads drift as far apart as the program allows:
 * what depends on a missing barrier shows as a result that depends on MSL_ORDER. */
#include "worker.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <thread>
#if MSL_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
#endif

thread_local msl_lane *msl_self = nullptr;

/* Save the callee-saved registers and the stack pointer in *save, go on where `to` was saved. */
extern "C" void msl_switch(void **save, void *to);
#if !defined(__x86_64__)
#error "msl_switch is written for x86-64 only"
#endif
asm(R"(
.text
.globl msl_switch
.hidden msl_switch
.type msl_switch,@function
msl_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size msl_switch,.-msl_switch
)");

namespace msl_rt
{

thread_local Worker *current_worker = nullptr;

namespace
{

constexpr size_t kPage = 4096;
constexpr int kSavedRegisters = 6; /* what msl_switch pops */
constexpr int kMainStack = kMaxThreads;

const char simdgroup_barrier_name[] = "simdgroup_barrier";

void stack_main()
{
#if MSL_ASAN
    current_worker->entered_stack();
#endif
    current_worker->run_threads();
    __builtin_unreachable();
}

uint32_t rounded_up(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

} // namespace

Options::Options()
{
    if (const char *text = getenv("MSL_ORDER")) {
        if (!strncmp(text, "desc", 4)) order = Order::descending;
        if (!strncmp(text, "random", 6)) {
            order = Order::random;
            const char *colon = strchr(text, ':');
            if (colon) seed = strtoull(colon + 1, nullptr, 10) * 2 + 1;
        }
    }
    relaxed = getenv("MSL_RELAXED") != nullptr;
    if (const char *text = getenv("MSL_THREADS")) threads = (unsigned)atoi(text);
    if (threads == 0) threads = std::thread::hardware_concurrency();
    if (const char *text = getenv("MSL_STACK_KB")) stack_bytes = (size_t)atol(text) << 10;
    stack_bytes = std::max<size_t>(stack_bytes, MSL_ASAN ? 256 << 10 : 16 << 10);
}

Worker::Worker() : stack_bytes_(options_.stack_bytes)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *stacks = mmap(nullptr, stack_bytes_ * kMaxThreads, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (stacks == MAP_FAILED) abort();
    stacks_ = (char *)stacks;
}

Worker::~Worker() { munmap(stacks_, stack_bytes_ * kMaxThreads); }

void Worker::fail(const char *format, ...)
{
    if (!error_.empty()) return; /* the first error is the cause */
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    error_ = std::string(kernel_->name) + ": " + text;
}

/* ------------------------------------------------------------------ threadgroup memory */

char *Worker::reserve(const void *key, uint32_t bytes, uint32_t align, const char *name)
{
    const uint32_t counted = rounded_up(threadgroup_bytes_, align) + bytes;
    if (counted > MSL_MAX_THREADGROUP_BYTES || variable_count_ == kMaxVariables) {
        fail("threadgroup memory: %s brings the total to %u bytes, over the limit of %u", name,
             counted, MSL_MAX_THREADGROUP_BYTES);
        return nullptr;
    }
    const uint32_t offset = rounded_up(arena_used_, std::max(align, 16u));
    threadgroup_bytes_ = counted;
    arena_used_ = offset + bytes + kRedZone;
    variables_[variable_count_++] = {key, offset, bytes, name};
    ASAN_POISON_MEMORY_REGION(arena_ + offset + bytes, kRedZone);
    memset(arena_ + offset, 0xff, bytes);
    return arena_ + offset;
}

void *Worker::threadgroup_variable(const void *key, unsigned size, unsigned align, const char *name)
{
    for (uint32_t i = 0; i < variable_count_; ++i)
        if (variables_[i].key == key) return arena_ + variables_[i].offset;
    void *variable = reserve(key, size, align, name);
    if (!variable) wait(msl_self); /* for good: there is an error */
    return variable;
}

bool Worker::begin(const msl_kernel *kernel, const msl_dispatch_info &info, const Options &options)
{
    /* An optional argument left unbound: a compiler may move its read before the test. */
    alignas(64) static char nothing[4096];
    ASAN_UNPOISON_MEMORY_REGION(arena_, sizeof arena_);
    kernel_ = kernel;
    info_ = &info;
    options_ = options;
    error_.clear();
    stats = {};
    device_races_.clear();
    groups_run_ = 0;
    variable_count_ = arena_used_ = threadgroup_bytes_ = 0;
#if MSL_ASAN
    main_bottom_ = nullptr;
#endif
    args_.assign((size_t)kernel->nargs + 1, nullptr);
    for (int i = 0; i < kernel->nargs; ++i) {
        const msl_arg &arg = kernel->args[i];
        if (arg.kind == MSL_ARG_BUFFER) {
            void *bound = info.buffers[arg.index].ptr;
            args_[(size_t)i] = bound ? bound : nothing;
        }
        if (arg.kind != MSL_ARG_THREADGROUP) continue;
        const uint32_t bytes = info.tg_length[arg.index];
        if (bytes == 0) fail("threadgroup memory %d (%s) has no length", arg.index, arg.name);
        if (bytes % 16)
            fail("threadgroup memory %d: length %u is no multiple of 16", arg.index, bytes);
        if (error_.empty()) args_[(size_t)i] = reserve(nullptr, bytes, 16, arg.name);
    }
    stats.tg_bytes = threadgroup_bytes_;
    return error_.empty();
}

/* ------------------------------------------------------------------ one threadgroup */

void Worker::place_group(const uint32_t position[3])
{
    const msl_dispatch_info &d = *info_;
    group_.nthreads = 1;
    for (int i = 0; i < 3; ++i) {
        group_.tg_pos[i] = position[i];
        group_.nominal_tpt[i] = d.tpt[i];
        group_.grid[i] = d.threads_mode ? d.grid[i] : d.grid[i] * d.tpt[i];
        group_.tgs[i] = d.threads_mode ? (d.grid[i] + d.tpt[i] - 1) / d.tpt[i] : d.grid[i];
        group_.tpt[i] = std::min(d.tpt[i], group_.grid[i] - position[i] * d.tpt[i]);
        group_.nthreads *= group_.tpt[i];
    }
    group_.nsimd = (group_.nthreads + MSL_SIMD_WIDTH - 1) / MSL_SIMD_WIDTH;
    group_.args = args_.data();
    ++groups_run_;
    threadgroup_races_.clear();
    live_ = group_.nthreads;
    at_barrier_ = 0;
    free_stacks_.clear();
    stacks_taken_ = 0;
    random_ = options_.seed * 0x9e3779b97f4a7c15ull + position[0] + position[1] * 977u +
              position[2] * 131071u;
    /* Not a number: what a threadgroup left behind is no value for the next one. */
    for (uint32_t i = 0; i < variable_count_; ++i)
        memset(arena_ + variables_[i].offset, 0xff, variables_[i].size);
}

void Worker::place_threads()
{
    for (uint32_t s = 0; s < group_.nsimd; ++s) {
        msl_simdgroup &group = simdgroups_[s];
        const uint32_t lanes = std::min<uint32_t>(32, group_.nthreads - s * 32);
        group.live = group.ready = lanes == 32 ? ~0u : (1u << lanes) - 1u;
        group.arrived = group.phase = 0;
        group.mixed = 0;
        group.first = s * 32;
        group.index = s;
        group.done[0] = group.done[1] = 0;
    }
    uint32_t position[3] = {0, 0, 0};
    for (uint32_t t = 0; t < group_.nthreads; ++t) {
        msl_lane &lane = lanes_[t];
        lane.sg = &simdgroups_[t / 32];
        lane.group = &group_;
        lane.lane = t % 32;
        lane.index = t;
        memcpy(lane.pos, position, sizeof position);
        lane.state = READY;
        lane.stack = -1;
        lane.op = "the kernel's body";
        lane.line = 0;
        for (int axis = 0; axis < 3 && ++position[axis] == group_.tpt[axis] && axis < 2; ++axis)
            position[axis] = 0;
    }
}

void Worker::run_group(const uint32_t position[3])
{
    place_group(position);
    place_threads();
    stats.threads += group_.nthreads;
    msl_lane *first = next(options_.order == Order::descending ? group_.nsimd - 1 : 0);
    resume(first, &main_stack_pointer_, kMainStack, false);
    msl_self = nullptr;
    stats.tg_bytes = threadgroup_bytes_;
}

void Worker::run_threads()
{
    for (;;) {
        msl_lane *me = msl_self;
        msl_simdgroup &group = *me->sg;
        const int stack = me->stack;
        kernel_->entry(group_.args);
        me->state = EXITED;
        --live_;
        group.live &= ~(1u << me->lane);
        group.ready &= ~(1u << me->lane);
        /* The lanes that wait may be all that are left. */
        if (is_complete(group)) release(group, group.arrived);
        msl_lane *to = error_.empty() ? next(group.index) : nullptr;
        if (to && to->stack < 0) {
            to->stack = stack;
            msl_self = to;
            continue;
        }
        free_stacks_.push_back(stack);
        resume(to, &abandoned_, stack, true);
    }
}

/* ------------------------------------------------------------------ who runs next */

uint32_t Worker::pick(uint32_t ready)
{
    if (options_.order == Order::ascending) return (uint32_t)__builtin_ctz(ready);
    if (options_.order == Order::descending) return 31 - (uint32_t)__builtin_clz(ready);
    random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
    const uint32_t above = ready & ~((1u << ((random_ >> 33) & 31)) - 1u);
    return (uint32_t)__builtin_ctz(above ? above : ready);
}

msl_lane *Worker::ready_lane(unsigned here)
{
    if (options_.order == Order::random) here = (here + (unsigned)(random_ >> 40)) % group_.nsimd;
    for (unsigned left = group_.nsimd; left > 0; --left) {
        msl_simdgroup &group = simdgroups_[here];
        if (group.ready) return &lanes_[group.first + pick(group.ready)];
        here = here + 1 == group_.nsimd ? 0 : here + 1;
    }
    return nullptr;
}

/* The thread to run, null when all are done or there is an error. */
msl_lane *Worker::next(unsigned here)
{
    for (;;) {
        if (msl_lane *lane = ready_lane(here)) return lane;
        if (!error_.empty() || live_ == 0) return nullptr;
        if (at_barrier_ == live_) {
            if (!release_barrier()) return nullptr;
        } else if (!options_.relaxed) {
            explain_deadlock();
            return nullptr;
        } else if (!release_some_of_a_divergent_simdgroup()) {
            fail("deadlock");
            return nullptr;
        }
    }
}

msl_lane *Worker::first_in(State state)
{
    for (uint32_t t = 0; t < group_.nthreads; ++t)
        if (lanes_[t].state == state) return &lanes_[t];
    return &lanes_[0];
}

/* Everyone still alive is at a barrier: the same one, and with nobody missing? */
bool Worker::release_barrier()
{
    const int line = first_in(AT_BARRIER)->line;
    if (live_ != group_.nthreads && !options_.relaxed) {
        fail("threadgroup_barrier at line %d: %u of %u threads had already returned", line,
             group_.nthreads - live_, group_.nthreads);
        return false;
    }
    for (uint32_t t = 0; t < group_.nthreads; ++t) {
        msl_lane &lane = lanes_[t];
        if (lane.state != AT_BARRIER) continue;
        if (lane.line != line && !options_.relaxed) {
            fail("threads wait at different threadgroup_barriers (lines %d and %d)", line,
                 lane.line);
            return false;
        }
        lane.state = READY;
        lane.sg->ready |= 1u << lane.lane;
    }
    at_barrier_ = 0;
    ++stats.barriers;
    device_barriers_ += (barrier_flags_ & MSL_MEM_DEVICE) != 0;
    threadgroup_barriers_ += (barrier_flags_ & MSL_MEM_THREADGROUP) != 0;
    return true;
}

/* MSL_RELAXED: the lanes that wait at the lowest line go on among themselves. */
bool Worker::release_some_of_a_divergent_simdgroup()
{
    for (unsigned s = 0; s < group_.nsimd; ++s) {
        msl_simdgroup &group = simdgroups_[s];
        if (!group.arrived) continue;
        int line = INT32_MAX;
        for (uint32_t rest = group.arrived; rest; rest &= rest - 1)
            line = std::min(line, lanes_[group.first + (unsigned)__builtin_ctz(rest)].line);
        uint32_t lanes = 0;
        for (uint32_t rest = group.arrived; rest; rest &= rest - 1) {
            const unsigned lane = (unsigned)__builtin_ctz(rest);
            if (lanes_[group.first + lane].line == line) lanes |= 1u << lane;
        }
        release(group, lanes);
        return true;
    }
    return false;
}

void Worker::explain_deadlock()
{
    for (unsigned s = 0; s < group_.nsimd; ++s) {
        const msl_simdgroup &group = simdgroups_[s];
        const uint32_t absent = group.live & ~group.arrived;
        if (!group.arrived || !absent) continue;
        const msl_lane &here = lanes_[group.first + (unsigned)__builtin_ctz(group.arrived)];
        const unsigned other = (unsigned)__builtin_ctz(absent);
        const msl_lane &there = lanes_[group.first + other];
        fail("divergence: %d of %d lanes of SIMD-group %u wait in %s (line %d) while lane %u waits "
             "in %s (line %d)",
             __builtin_popcount(group.arrived), __builtin_popcount(group.live), s, here.op,
             here.line, other, there.op, there.line);
        return;
    }
    fail("deadlock: %u of %u live threads at a barrier", at_barrier_, live_);
}

bool Worker::is_complete(const msl_simdgroup &group) const
{
    return group.arrived && group.arrived == group.live && !group.mixed;
}

/* One more lane has arrived where the others may not be. */
void Worker::compare_places(msl_simdgroup &group, const char *op, int line)
{
    if (line == group.line && (op == group.op || !strcmp(op, group.op))) return;
    group.mixed = 1;
    if (!options_.relaxed)
        fail("divergence: lanes of one SIMD-group meet in %s (line %d) and %s (line %d)", group.op,
             group.line, op, line);
}

void Worker::release(msl_simdgroup &group, uint32_t lanes)
{
    const msl_lane &first = lanes_[group.first + (unsigned)__builtin_ctz(lanes)];
    simd_barriers_[group.index] += first.op == simdgroup_barrier_name;
    group.mask[group.phase & 1] = lanes;
    group.done[group.phase & 1] = 0;
    ++group.phase;
    group.arrived &= ~lanes;
    group.ready |= lanes;
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
        lanes_[group.first + (unsigned)__builtin_ctz(rest)].state = READY;
    ++stats.simd_ops;
}

unsigned Worker::arrive(const char *op, int line)
{
    msl_lane *me = msl_self;
    msl_simdgroup &group = *me->sg;
    const unsigned phase = group.phase & 1, bit = 1u << me->lane;
    me->op = op;
    me->line = line;
    if (group.arrived) {
        compare_places(group, op, line);
    } else {
        group.op = op;
        group.line = line;
        group.mixed = 0;
    }
    group.arrived |= bit;
    if (is_complete(group)) {
        release(group, group.arrived);
        return group.mask[phase];
    }
    me->state = AT_SIMD;
    group.ready &= ~bit;
    wait(me);
    return group.mask[phase];
}

void Worker::barrier(int flags, int line)
{
    msl_lane *me = msl_self;
    barrier_flags_ = flags;
    me->op = "threadgroup_barrier";
    me->line = line;
    me->state = AT_BARRIER;
    me->sg->ready &= ~(1u << me->lane);
    ++at_barrier_;
    wait(me);
}

/* ------------------------------------------------------------------ stacks */

int Worker::take_stack()
{
    if (!free_stacks_.empty()) {
        const int stack = free_stacks_.back();
        free_stacks_.pop_back();
        return stack;
    }
    const int stack = stacks_taken_++;
    if (stack >= stacks_guarded_) { /* an overflow faults in the page below */
        mprotect(stack_bottom(stack), kPage, PROT_NONE);
        stacks_guarded_ = stack + 1;
    }
    return stack;
}

void *Worker::fresh_context(int stack)
{
    /* Staggered: equal offsets in equal stacks would all fall into the same cache sets. */
    const size_t stagger = (size_t)(stack % 32) * 320 + (size_t)(stack / 32 % 8) * 64;
    void **top = (void **)(stack_bottom(stack + 1) - stagger);
    *--top = nullptr; /* a return address: aligns the stack as a call does */
    *--top = (void *)&stack_main;
    for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
    return top;
}

/* Give the turn to another thread; returns when this one has it again. */
void Worker::wait(msl_lane *lane)
{
    msl_lane *to = error_.empty() ? next(lane->sg->index) : nullptr;
    if (to != lane) resume(to, &lane->stack_pointer, lane->stack, false);
}

/* Run `to` (null: the worker itself) and leave stack `from`, `for_good` if nobody comes back. */
void Worker::resume(msl_lane *to, void **save, int from, bool for_good)
{
    ++stats.switches;
    if (to && to->stack < 0) {
        to->stack = take_stack();
        to->stack_pointer = fresh_context(to->stack);
    }
    msl_self = to;
#if MSL_ASAN
    const void *bottom = to ? stack_bottom(to->stack) : main_bottom_;
    const size_t size = to ? stack_bytes_ : main_size_;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stacks_[from], bottom, size);
    msl_switch(save, to ? to->stack_pointer : main_stack_pointer_);
    __sanitizer_finish_switch_fiber(fake_stacks_[from], nullptr, nullptr);
#else
    (void)from, (void)for_good;
    msl_switch(save, to ? to->stack_pointer : main_stack_pointer_);
#endif
}

#if MSL_ASAN
void Worker::entered_stack()
{
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (main_bottom_) return; /* only the first came from the worker's own stack */
    main_bottom_ = bottom;
    main_size_ = size;
}
#endif

} // namespace msl_rt

unsigned msl_rt_arrive(const char *op, int line)
{
    return msl_rt::current_worker->arrive(op, line);
}

void msl_rt_barrier(int flags, int line) { msl_rt::current_worker->barrier(flags, line); }

void msl_rt_simdgroup_barrier(int line)
{
    msl_rt::current_worker->arrive(msl_rt::simdgroup_barrier_name, line);
}

void *msl_rt_threadgroup(const void *key, unsigned size, unsigned align, const char *name)
{
    return msl_rt::current_worker->threadgroup_variable(key, size, align, name);
}
