/* shortages.c: threads and memory that the system refuses, one after another: each is an error code
 * with a text, what was made so far is given back, and the device goes on. The functions of the C
 * library that are asked for them are taken over here and refuse when a check says so. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

/* How many more may be had; negative: any number. Of the thread that checks alone: a sanitizer asks
 * for memory in every thread that begins. */
static _Thread_local int threads_left = -1, memory_left = -1, growth_left = -1;
static int num_created, num_joined;

#ifndef __SANITIZE_THREAD__ /* which has its own of these, and must be asked first */
static bool is_refused_now(int *left)
{
    if (*left < 0) return false;
    if (*left == 0) return true;
    (*left)--;
    return false;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*work)(void *),
                   void *argument)
{
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = NULL;
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    if (is_refused_now(&threads_left)) return EAGAIN;
    num_created++;
    return real(thread, attributes, work, argument);
}

int pthread_join(pthread_t thread, void **result)
{
    int (*real)(pthread_t, void **) = NULL;
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_join");
    num_joined++;
    return real(thread, result);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    void *(*real)(size_t, size_t) = NULL;
    *(void **)&real = dlsym(RTLD_NEXT, "aligned_alloc");
    return is_refused_now(&memory_left) ? NULL : real(alignment, bytes);
}

void *realloc(void *memory, size_t bytes)
{
    void *(*real)(void *, size_t) = NULL;
    *(void **)&real = dlsym(RTLD_NEXT, "realloc");
    return is_refused_now(&growth_left) ? NULL : real(memory, bytes);
}
#endif

/* Whether a device of four threads is refused for want of them, and none is left over. */
static bool is_refused_to_open(void)
{
    marlin_device_options options = {.num_threads = 4};
    marlin_device *device = NULL;
    num_created = num_joined = 0;
    int code = marlin_device_open(&options, &device);
    bool is_told = !strcmp(marlin_last_error(), "4 worker threads could not be started");
    if (device) marlin_device_close(device);
    return code == MARLIN_ENOMEM && !device && is_told && num_created == num_joined;
}

static void check_devices_without_threads(void)
{
    for (int n = 0; n < 3; n++) {
        threads_left = n;
        check(is_refused_to_open(), "with %d threads of 3 to be had a device is refused", n);
    }
    threads_left = 3;
    num_created = num_joined = 0;
    marlin_device *device = open_device("", 4);
    threads_left = -1;
    check(device && num_created == 3, "with 3 threads to be had a device of 4 workers opens");
    marlin_device_close(device);
    check(num_joined == 3, "a closed device has ended its threads");
    memory_left = 0;
    check(is_refused_to_open(), "without memory for its pool a device is refused");
    memory_left = -1;
    marlin_device_close(NULL);
}

static int64_t allocated_bytes(marlin_device *device)
{
    marlin_device_info info = {0};
    marlin_device_describe(device, &info);
    return info.allocated_bytes;
}

static void check_buffers_without_memory(marlin_device *device)
{
    growth_left = 0;
    int code = marlin_buffer_create(device, 64);
    growth_left = -1;
    check(code == MARLIN_ENOMEM && !strcmp(marlin_last_error(), "no memory for a buffer's record"),
          "a buffer without memory for its record is refused");
    check(allocated_bytes(device) == 0, "a refused buffer counts as no memory");
    int id = marlin_buffer_create(device, 64);
    check(id == 1 && allocated_bytes(device) == 64, "the next buffer has the first id");
    marlin_buffer_release(device, id);
    check(allocated_bytes(device) == 0, "a released buffer counts as no memory");
    check(!marlin_buffer_contents(device, 2) && !marlin_buffer_contents(device, 1),
          "the first id that was never given is no buffer");
}

/* Each piece of memory that a program asks for, refused: it is an error, and the last try works. */
static void check_programs_without_memory(marlin_device *device)
{
    test_case *c = make_layer(0);
    loaded_case loaded;
    int num_refused = 0;
    for (;; num_refused++) {
        memory_left = num_refused;
        int code = load_case(c, device, &loaded);
        if (code == MARLIN_OK) break;
        bool is_told = !strncmp(marlin_last_error(), "no memory for the scratch space of ", 35);
        if (!check(code == MARLIN_ENOMEM && is_told, "piece %d of a program's memory is missed",
                   num_refused))
            break;
    }
    memory_left = -1;
    check(num_refused >= 2 + 2 * 2, "a program asks for memory for all and for each worker");
    check(replay(&loaded, 0, c->num_records) == MARLIN_OK, "a program with all its memory runs");
    unload_case(&loaded);
    free_case(c);
}

void check_shortages(void)
{
    check_devices_without_threads();
    marlin_device *device = open_device("", 2);
    check_buffers_without_memory(device);
    check_programs_without_memory(device);
    marlin_device_close(device);
}
