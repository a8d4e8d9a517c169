/* device_test.c: the CPU device through marlin.h alone: every kernel in every instruction set that
 * this machine and build have, refusals, index errors, buffers. Prints one line a check and a
 * summary; exits with 1 when a check failed. Made to run under sanitizers and under qemu.
 *
 *   device_test SCRATCH_FILE [ONE_CHECK ...]    the file is written and removed again */
#include <stdio.h>
#include <string.h>

#include "cases.h"

static void print_sets(void)
{
    static const char *const names[] = {"avx512", "avx2", "i8mm", "neon", "scalar"};
    printf("instruction sets:");
    for (int i = 0; i < 5; i++) {
        marlin_device *device = open_device(names[i], 1);
        if (device) printf(" %s", names[i]);
        marlin_device_close(device);
    }
    marlin_device *best = open_device("", 1);
    marlin_device_info info = {0};
    marlin_device_describe(best, &info);
    printf("; best: %s\n", info.isa);
    marlin_device_close(best);
}

static bool is_wanted(int argc, char **argv, const char *name)
{
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], name) == 0) return true;
    return argc <= 2;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: device_test SCRATCH_FILE [ONE_CHECK ...]\n");
        return 2;
    }
    print_sets();
    static const struct {
        const char *name;
        void (*run)(void);
    } checks[] = {
        {"devices", check_devices},
        {"kernels", check_kernels},
        {"replays", check_replays},
        {"records", check_record_refusals},
        {"parameters", check_parameter_refusals},
        {"submit", check_submit_refusals},
        {"indices", check_index_errors},
        {"grammars", check_grammars},
        {"shortages", check_shortages},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
        if (is_wanted(argc, argv, checks[i].name)) checks[i].run();
    if (is_wanted(argc, argv, "buffers")) check_buffers(argv[1]);
    return report();
}
