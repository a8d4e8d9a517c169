/* cpu.c: the CPU device: opening it, and its instruction set. Programs are in cpu_program.c,
 * buffers in buffers.c. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu/cpu.h"

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
    device->pool = marlin_pool_create(num_threads > MAX_THREADS ? MAX_THREADS : num_threads);
    if (marlin_buffers_open(&device->buffers) != MARLIN_OK || !device->pool) {
        marlin_pool_destroy(device->pool);
        marlin_buffers_close(device);
        free(device);
        return marlin_fail(MARLIN_ENOMEM, "%d worker threads could not be started", num_threads);
    }
    *out = device;
    return MARLIN_OK;
}

void marlin_device_close(marlin_device *device)
{
    if (!device) return;
    if (device->running) marlin_program_wait(device->running);
    marlin_pool_destroy(device->pool);
    marlin_buffers_close(device);
    free(device);
}

int marlin_device_describe(marlin_device *device, marlin_device_info *out)
{
    if (!device || !out)
        return marlin_fail(MARLIN_EINVAL, "no device or nowhere to put its description");
    *out = (marlin_device_info){.name = "CPU",
                                .num_threads = marlin_pool_size(device->pool),
                                .page_bytes = (int32_t)sysconf(_SC_PAGESIZE),
                                .allocated_bytes = device->buffers.allocated_bytes,
                                .mapped_bytes = device->buffers.mapped_bytes};
    out->memory_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * out->page_bytes;
    out->max_buffer_bytes = out->memory_bytes;
    snprintf(out->isa, sizeof out->isa, "%s", device->isa->name);
    return MARLIN_OK;
}

int marlin_device_keep_resident(marlin_device *device)
{
    return device ? MARLIN_OK : marlin_fail(MARLIN_EINVAL, "no device");
}

/* ---- buffers: the CPU binds memory itself ---- */

marlin_buffers *marlin_device_buffers(marlin_device *device) { return &device->buffers; }

int marlin_device_attach(marlin_device *device, marlin_buffer *buffer)
{
    (void)device, (void)buffer;
    return MARLIN_OK;
}

void marlin_device_detach(marlin_device *device, marlin_buffer *buffer)
{
    (void)device, (void)buffer;
}
