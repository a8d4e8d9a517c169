/* msl_dispatch.cpp: kernel libraries, the checks of a dispatch, and threadgroups over CPU threads.
 */
#include "worker.h"
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

struct msl_library {
    msl_module *module;
    std::vector<const msl_kernel *> kernels;
};

namespace msl_rt
{
namespace
{

/* CPU threads that help whoever dispatches. They live as long as the process: making one costs more
 * than a small dispatch. A helper that comes too late for a dispatch takes no part in it. */
class Helpers
{
  public:
    void run(unsigned count, const std::function<void()> &work)
    {
        std::unique_lock<std::mutex> use(in_use_, std::try_to_lock);
        if (count == 0 || !use.owns_lock()) return work(); /* others dispatch at the same time */
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (; started_ < count; ++started_) std::thread([this] { serve(); }).detach();
            work_ = &work;
            wanted_ = count;
        }
        wake_.notify_all();
        work();
        std::unique_lock<std::mutex> lock(mutex_);
        wanted_ = 0;
        idle_.wait(lock, [this] { return running_ == 0; });
    }

  private:
    void serve()
    {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return wanted_ > 0; });
            --wanted_;
            ++running_;
            const std::function<void()> *work = work_;
            lock.unlock();
            (*work)();
            lock.lock();
            if (--running_ == 0) idle_.notify_all();
        }
    }

    std::mutex in_use_, mutex_;
    std::condition_variable wake_, idle_;
    const std::function<void()> *work_ = nullptr;
    unsigned wanted_ = 0, running_ = 0, started_ = 0;
};

/* Stacks are expensive to make: workers are kept between dispatches. */
class WorkerShelf
{
  public:
    Worker *take()
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (workers_.empty()) return new Worker;
        Worker *worker = workers_.back();
        workers_.pop_back();
        return worker;
    }
    void give(Worker *worker)
    {
        std::lock_guard<std::mutex> lock(mutex_);
        workers_.push_back(worker);
    }

  private:
    std::mutex mutex_;
    std::vector<Worker *> workers_;
};

/* Never destroyed: helper threads may still run when the process ends. */
Helpers &helpers()
{
    static Helpers *all = new Helpers;
    return *all;
}
WorkerShelf &shelf()
{
    static WorkerShelf *all = new WorkerShelf;
    return *all;
}
std::mutex last_stats_mutex;
msl_stats last_stats;

std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char *format, ...)
{
    char out[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out, sizeof out, format, arguments);
    va_end(arguments);
    return out;
}

uint32_t groups_along(const msl_dispatch_info &info, int axis)
{
    if (!info.threads_mode) return info.grid[axis];
    return (info.grid[axis] + info.tpt[axis] - 1) / info.tpt[axis];
}

int max_threads(const msl_kernel *kernel)
{
    return kernel->max_threads > 0 ? kernel->max_threads : (int)kMaxThreads;
}

/* What Metal's API validation refuses; "" if it would not. */
std::string refusal(const msl_kernel *kernel, const msl_dispatch_info &info)
{
    uint64_t threads = 1;
    for (int axis = 0; axis < 3; ++axis) {
        if (!info.tpt[axis] || !info.grid[axis]) return "a grid or threadgroup dimension is zero";
        threads *= info.tpt[axis];
    }
    if (threads > (uint64_t)max_threads(kernel))
        return text("%llu threads per threadgroup, at most %d", (unsigned long long)threads,
                    max_threads(kernel));
    for (int i = 0; i < kernel->nargs; ++i) {
        const msl_arg &arg = kernel->args[i];
        if (arg.kind != MSL_ARG_BUFFER) continue;
        const msl_binding &bound = info.buffers[arg.index];
        if (!bound.ptr && arg.optional) continue;
        if (!bound.ptr) return text("buffer %d (%s) is not bound", arg.index, arg.name);
        if (arg.is_reference && bound.length < arg.size)
            return text("buffer %d (%s): %zu bytes bound, the kernel reads a value of %u",
                        arg.index, arg.name, bound.length, arg.size);
        if ((uintptr_t)bound.ptr % arg.align)
            return text("buffer %d (%s): offset breaks the alignment of %u", arg.index, arg.name,
                        arg.align);
    }
    return "";
}

/* One dispatch, shared by the threads that work on it. */
class Dispatch
{
  public:
    /* `alone`: on this CPU thread only. */
    Dispatch(const msl_kernel *kernel, const msl_dispatch_info &info, bool alone)
        : kernel_(kernel), info_(info)
    {
        if (alone) options_.threads = 1;
        for (int axis = 0; axis < 3; ++axis) groups_[axis] = groups_along(info, axis);
        total_ = (uint64_t)groups_[0] * groups_[1] * groups_[2];
    }

    /* The first error, "" if there was none. */
    std::string run()
    {
        const uint64_t threads = std::min<uint64_t>(std::max(options_.threads, 1u), total_);
        helpers().run((unsigned)threads - 1, [this] { work(); });
        std::lock_guard<std::mutex> lock(last_stats_mutex);
        last_stats = stats_;
        return error_;
    }

  private:
    void work()
    {
        Worker *worker = current_worker = shelf().take();
        if (worker->begin(kernel_, info_, options_)) run_groups(*worker);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            if (error_.empty()) error_ = worker->error();
            if (!error_.empty()) failed_ = true;
            stats_.switches += worker->stats.switches;
            stats_.threads += worker->stats.threads;
            stats_.barriers += worker->stats.barriers;
            stats_.simd_ops += worker->stats.simd_ops;
            stats_.tg_bytes = std::max(stats_.tg_bytes, worker->stats.tg_bytes);
        }
        current_worker = nullptr;
        shelf().give(worker);
    }

    void run_groups(Worker &worker)
    {
        while (!failed_ && worker.error().empty()) {
            const uint64_t i = next_++;
            if (i >= total_) return;
            const uint32_t position[3] = {(uint32_t)(i % groups_[0]),
                                          (uint32_t)(i / groups_[0] % groups_[1]),
                                          (uint32_t)(i / groups_[0] / groups_[1])};
            worker.run_group(position);
        }
    }

    const msl_kernel *kernel_;
    const msl_dispatch_info &info_;
    Options options_;
    uint32_t groups_[3];
    uint64_t total_;
    std::atomic<uint64_t> next_{0};
    std::atomic<bool> failed_{false};
    std::mutex mutex_;
    std::string error_;
    msl_stats stats_{};
};

} // namespace
} // namespace msl_rt

using namespace msl_rt;

msl_library *msl_library_open(const char *path, char *err, size_t errn)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *module = handle ? dlsym(handle, "msl_this_module") : nullptr;
    if (!module) {
        if (err) snprintf(err, errn, "%s", handle ? "not a kernel library" : dlerror());
        return nullptr;
    }
    msl_library *library = new msl_library{(msl_module *)module, {}};
    for (int i = 0; i < library->module->nkernels; ++i)
        library->kernels.push_back(library->module->kernel_at(i));
    return library;
}

int msl_library_count(msl_library *library) { return (int)library->kernels.size(); }

const char *msl_library_name(msl_library *library, int kernel)
{
    return library->kernels[(size_t)kernel]->name;
}

int msl_library_find(msl_library *library, const char *name)
{
    for (size_t i = 0; i < library->kernels.size(); ++i)
        if (!strcmp(library->kernels[i]->name, name)) return (int)i;
    return -1;
}

int msl_kernel_max_threads(msl_library *library, int kernel)
{
    return max_threads(library->kernels[(size_t)kernel]);
}

int msl_kernel_nargs(msl_library *library, int kernel)
{
    return library->kernels[(size_t)kernel]->nargs;
}

const char *msl_kernel_arg(msl_library *library, int kernel, int argument, int out[6])
{
    const msl_arg &arg = library->kernels[(size_t)kernel]->args[argument];
    const int facts[6] = {arg.kind,       arg.index,        (int)arg.size,
                          (int)arg.align, arg.is_reference, arg.is_const};
    memcpy(out, facts, sizeof facts);
    return arg.name;
}

int msl_library_nconstants(msl_library *library) { return library->module->nfconsts; }

const char *msl_library_constant(msl_library *library, int i, int out[2])
{
    const msl_fconst &constant = library->module->fconsts[i];
    out[0] = constant.index;
    out[1] = (int)constant.size;
    return constant.name;
}

int msl_library_set_constant(msl_library *library, int index, const char *name, const void *value,
                             size_t size)
{
    int result = -1;
    for (int i = 0; i < library->module->nfconsts; ++i) {
        const msl_fconst &constant = library->module->fconsts[i];
        if (name ? strcmp(constant.name, name) != 0 : constant.index != index) continue;
        if (size != constant.size) return -2;
        memcpy(constant.value, value, size);
        *constant.defined = 1;
        result = 0;
    }
    return result;
}

void msl_library_clear_constants(msl_library *library)
{
    for (int i = 0; i < library->module->nfconsts; ++i) {
        const msl_fconst &constant = library->module->fconsts[i];
        memset(constant.value, 0, constant.size);
        *constant.defined = 0;
    }
}

void msl_last_stats(msl_stats *stats)
{
    std::lock_guard<std::mutex> lock(last_stats_mutex);
    *stats = last_stats;
}

int msl_dispatch(msl_library *library, int kernel, const msl_dispatch_info *info, char *err,
                 size_t errn)
{
    const msl_kernel *what = library->kernels[(size_t)kernel];
    std::string error = refusal(what, *info);
    if (!error.empty())
        error = std::string(what->name) + ": " + error;
    else
        error = Dispatch(what, *info, library->module->looks_for_races).run();
    if (error.empty()) return 0;
    if (err) snprintf(err, errn, "%s", error.c_str());
    return -1;
}
