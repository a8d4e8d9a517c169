/* cpu.c: the CPU device: opening it, its instruction set, its buffers. Programs are in
 * cpu_program.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

/* More workers than this help no model that a CPU serves; it bounds what a typing error can start.
 */
#define MAX_THREADS 256
/* Below this a huge page would be mostly empty. */
#define HUGE_PAGE_BYTES (4 << 20)

static _Thread_local char error_text[512];

int marlin_fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
    return code;
}

const char *marlin_last_error(void) { return error_text; }

int marlin_abi_version(void) { return MARLIN_ABI_VERSION; }

int marlin_kernel_find(const char *name)
{
    for (int i = 1; name && i < NUM_KERNELS; i++)
        if (strcmp(marlin_kernels[i].name, name) == 0) return i;
    return marlin_fail(MARLIN_EINVAL, "no kernel is named %.64s", name ? name : "(null)");
}

/* ---- instruction sets, best first ---- */

#if defined(MARLIN_HAVE_AVX512)
extern const marlin_isa marlin_isa_avx512;
static int has_avx512(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(MARLIN_HAVE_AVX2)
extern const marlin_isa marlin_isa_avx2;
static int has_avx2(void)
{
    __builtin_cpu_init();
    unsigned eax, ebx, ecx, edx;
    /* Not every clang's __builtin_cpu_supports() knows f16c. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

#if defined(MARLIN_HAVE_NEON) || defined(MARLIN_HAVE_I8MM)
extern const marlin_isa marlin_isa_i8mm, marlin_isa_neon;
#if defined(__APPLE__)
static int has_feature(const char *name)
{
    int value = 0;
    size_t bytes = sizeof value;
    return sysctlbyname(name, &value, &bytes, NULL, 0) == 0 && value;
}
static int has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
static int has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; } /* HWCAP_ASIMDDP */
static int has_i8mm(void)
{
    return has_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
} /* HWCAP2_I8MM */
#endif
#endif

#if defined(MARLIN_HAVE_SCALAR)
extern const marlin_isa marlin_isa_scalar;
static int always(void) { return 1; }
#endif

static const struct {
    const marlin_isa *isa;
    int (*supported)(void);
} isas[] = {
#if defined(MARLIN_HAVE_AVX512)
    {&marlin_isa_avx512, has_avx512},
#endif
#if defined(MARLIN_HAVE_AVX2)
    {&marlin_isa_avx2, has_avx2},
#endif
#if defined(MARLIN_HAVE_I8MM)
    {&marlin_isa_i8mm, has_i8mm},
#endif
#if defined(MARLIN_HAVE_NEON)
    {&marlin_isa_neon, has_dotprod},
#endif
#if defined(MARLIN_HAVE_SCALAR)
    {&marlin_isa_scalar, always},
#endif
};

static const marlin_isa *choose_isa(const char *name)
{
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++)
        if ((name[0] == '\0' || strcmp(name, isas[i].isa->name) == 0) && isas[i].supported())
            return isas[i].isa;
    return NULL;
}

/* ---- the device ---- */

static int usable_cores(void)
{
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int)count : 1;
}

int marlin_device_open(const marlin_device_options *options, marlin_device **out)
{
    if (!options || !out)
        return marlin_fail(MARLIN_EINVAL, "no options or nowhere to put the device");
    if (options->num_threads < 0 || options->num_threads > MAX_THREADS)
        return marlin_fail(MARLIN_EINVAL, "%d threads, 1 to %d can be had", options->num_threads,
                           MAX_THREADS);
    char name[sizeof options->isa + 1] = {0};
    memcpy(name, options->isa, sizeof options->isa);
    const marlin_isa *isa = choose_isa(name);
    if (!isa)
        return marlin_fail(MARLIN_EINVAL, "this CPU or build does not have the instruction set %s",
                           name);
    marlin_device *device = calloc(1, sizeof *device);
    if (!device) return marlin_fail(MARLIN_ENOMEM, "no memory for a device");
    int num_threads = options->num_threads ? options->num_threads : usable_cores();
    device->isa = isa;
    device->num_buffers = 1;
    device->buffers = calloc(1, sizeof *device->buffers);
    device->pool = marlin_pool_create(num_threads > MAX_THREADS ? MAX_THREADS : num_threads);
    if (!device->pool || !device->buffers) {
        marlin_pool_destroy(device->pool);
        free(device->buffers);
        free(device);
        return marlin_fail(MARLIN_ENOMEM, "%d worker threads could not be started", num_threads);
    }
    *out = device;
    return MARLIN_OK;
}

static void free_buffer(marlin_device *device, marlin_buffer *buffer)
{
    if (buffer->mapping) munmap(buffer->mapping, buffer->mapping_bytes);
    if (buffer->from_file)
        device->mapped_bytes -= buffer->bytes;
    else if (buffer->mapping)
        device->allocated_bytes -= buffer->bytes;
    memset(buffer, 0, sizeof *buffer);
}

void marlin_device_close(marlin_device *device)
{
    if (!device) return;
    if (device->running) marlin_program_wait(device->running);
    marlin_pool_destroy(device->pool);
    for (int32_t i = 1; i < device->num_buffers; i++)
        if (device->buffers[i].holds > 0) free_buffer(device, &device->buffers[i]);
    free(device->buffers);
    free(device);
}

int marlin_device_describe(marlin_device *device, marlin_device_info *out)
{
    if (!device || !out)
        return marlin_fail(MARLIN_EINVAL, "no device or nowhere to put its description");
    *out = (marlin_device_info){.name = "CPU",
                                .num_threads = marlin_pool_size(device->pool),
                                .page_bytes = (int32_t)sysconf(_SC_PAGESIZE),
                                .allocated_bytes = device->allocated_bytes,
                                .mapped_bytes = device->mapped_bytes};
    out->memory_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * out->page_bytes;
    snprintf(out->isa, sizeof out->isa, "%s", device->isa->name);
    return MARLIN_OK;
}

/* ---- buffers ---- */

marlin_buffer *marlin_buffer_get(marlin_device *device, int id)
{
    if (!device || id < 1 || id >= device->num_buffers) return NULL;
    marlin_buffer *buffer = &device->buffers[id];
    return buffer->holds > 0 && !buffer->released ? buffer : NULL;
}

void marlin_buffer_unhold(marlin_device *device, int id)
{
    marlin_buffer *buffer = &device->buffers[id];
    if (--buffer->holds == 0) free_buffer(device, buffer);
}

static int add_buffer(marlin_device *device, marlin_buffer buffer)
{
    int32_t id = 1;
    while (id < device->num_buffers && device->buffers[id].holds > 0) id++;
    if (id == device->num_buffers) {
        marlin_buffer *grown = realloc(device->buffers, (size_t)(id + 1) * sizeof *grown);
        if (!grown) {
            if (buffer.mapping) munmap(buffer.mapping, buffer.mapping_bytes);
            return marlin_fail(MARLIN_ENOMEM, "no memory for a buffer's record");
        }
        device->buffers = grown;
        device->num_buffers = id + 1;
    }
    buffer.holds = 1;
    device->buffers[id] = buffer;
    if (buffer.from_file)
        device->mapped_bytes += buffer.bytes;
    else if (buffer.mapping)
        device->allocated_bytes += buffer.bytes;
    return id;
}

int marlin_buffer_create(marlin_device *device, int64_t bytes)
{
    if (!device || bytes < 1)
        return marlin_fail(MARLIN_EINVAL, "a buffer of %lld bytes", (long long)bytes);
    void *memory =
        mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return marlin_fail(MARLIN_ENOMEM, "no memory for a buffer of %lld bytes", (long long)bytes);
#if defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_PAGE_BYTES) madvise(memory, (size_t)bytes, MADV_HUGEPAGE);
#endif
    return add_buffer(device, (marlin_buffer){.memory = memory,
                                              .bytes = bytes,
                                              .mapping = memory,
                                              .mapping_bytes = (size_t)bytes,
                                              .writable = 1});
}

int marlin_buffer_map(marlin_device *device, const char *path, int64_t offset, int64_t bytes)
{
    if (!device || !path || offset < 0 || bytes < 1)
        return marlin_fail(MARLIN_EINVAL, "cannot map %lld bytes at %lld", (long long)bytes,
                           (long long)offset);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return marlin_fail(MARLIN_EIO, "%.200s: %s", path, strerror(errno));
    struct stat status;
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || offset > status.st_size ||
        bytes > status.st_size - offset) {
        close(file);
        return marlin_fail(MARLIN_EIO, "%.200s does not hold %lld bytes at %lld", path,
                           (long long)bytes, (long long)offset);
    }
    int64_t lead = offset % sysconf(_SC_PAGESIZE);
    size_t mapping_bytes = (size_t)(bytes + lead);
    uint8_t *mapping = mmap(NULL, mapping_bytes, PROT_READ, MAP_SHARED, file, offset - lead);
    close(file);
    if (mapping == MAP_FAILED)
        return marlin_fail(MARLIN_EIO, "%.200s: mmap: %s", path, strerror(errno));
    return add_buffer(device, (marlin_buffer){.memory = mapping + lead,
                                              .bytes = bytes,
                                              .mapping = mapping,
                                              .mapping_bytes = mapping_bytes,
                                              .from_file = 1});
}

int marlin_buffer_wrap(marlin_device *device, void *memory, int64_t bytes)
{
    if (!device || !memory || bytes < 1) return marlin_fail(MARLIN_EINVAL, "nothing to wrap");
    return add_buffer(device, (marlin_buffer){.memory = memory, .bytes = bytes, .writable = 1});
}

void *marlin_buffer_contents(marlin_device *device, int id)
{
    marlin_buffer *buffer = marlin_buffer_get(device, id);
    if (!buffer) {
        marlin_fail(MARLIN_EINVAL, "buffer %d does not exist", id);
        return NULL;
    }
    return buffer->memory;
}

int marlin_buffer_release(marlin_device *device, int id)
{
    marlin_buffer *buffer = marlin_buffer_get(device, id);
    if (!buffer) return marlin_fail(MARLIN_EINVAL, "buffer %d does not exist", id);
    buffer->released = 1;
    marlin_buffer_unhold(device, id);
    return MARLIN_OK;
}
