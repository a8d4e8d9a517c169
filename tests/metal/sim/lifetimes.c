/* lifetimes.c: uses Metal devices through marlin.h as a careful caller does, on one thread and on
 * several, and gives everything back; prints "fine". Made to run under sanitizers. Its argument
 * names one mistake that it makes as well, which they must report; "none" is none. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if __has_feature(address_sanitizer)
#include <sanitizer/lsan_interface.h>
#else
static void __lsan_disable(void) {}
static void __lsan_enable(void) {}
#endif

#include "marlin.h"
#include "params.h"

enum { DIM = 64, BYTES = 4 * DIM, CHAIN = 3, ROUNDS = 5, THREADS = 3 };

static void expect(int holds, const char *what)
{
    if (holds) return;
    fprintf(stderr, "not so: %s (%s)\n", what, marlin_last_error());
    exit(2);
}

/* ---- the parts of a use ---- */

/* A chain of silu_mul: each dispatch reads what the one before wrote, the first wrapped memory. */
typedef struct {
    marlin_device *device;
    void *wrapped;
    int buffers[CHAIN + 1];
    marlin_dispatch records[CHAIN];
    marlin_program *program;
} chain;

static marlin_device *open_device(void)
{
    marlin_device_options options = {0};
    marlin_device *device = NULL;
    expect(marlin_device_open(&options, &device) == MARLIN_OK, "a device opens");
    return device;
}

static marlin_dispatch silu_record(int from, int to)
{
    struct RowsParams params = {.rows_var = 0, .dim = DIM};
    marlin_dispatch record = {.kernel = marlin_kernel_find("silu_mul"),
                              .barrier = 1,
                              .num_bindings = 3,
                              .param_bytes = sizeof params,
                              .bindings = {{from, MARLIN_READ, 0, BYTES},
                                           {from, MARLIN_READ, 0, BYTES},
                                           {to, MARLIN_WRITE, 0, BYTES}}};
    memcpy(record.params, &params, sizeof params);
    return record;
}

static chain make_chain(marlin_device *device)
{
    chain c = {.device = device};
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    c.wrapped = aligned_alloc(page, page);
    for (int i = 0; i < DIM; i++) ((float *)c.wrapped)[i] = 1;
    c.buffers[0] = marlin_buffer_wrap(device, c.wrapped, BYTES);
    for (int i = 1; i <= CHAIN; i++) c.buffers[i] = marlin_buffer_create(device, BYTES);
    for (int i = 0; i < CHAIN; i++) c.records[i] = silu_record(c.buffers[i], c.buffers[i + 1]);
    expect(marlin_program_create(device, c.records, CHAIN, &c.program) == MARLIN_OK,
           "a program is created");
    return c;
}

static int submit(chain *c, int first, int rows)
{
    int32_t vars[] = {rows};
    return marlin_program_submit(c->program, first, CHAIN - first, vars, 1);
}

static void check_result(const chain *c)
{
    const float *result = marlin_buffer_contents(c->device, c->buffers[1]);
    for (int i = 0; i < DIM; i++)
        expect(fabsf(result[i] - 0.7310586f) < 1e-6f, "the first output is silu(1)");
}

/* The program keeps the buffers until it is destroyed. */
static void end_chain(chain *c)
{
    for (int i = 0; i <= CHAIN; i++) marlin_buffer_release(c->device, c->buffers[i]);
    marlin_program_destroy(c->program);
    free(c->wrapped);
}

/* ---- careful uses ---- */

static void use_device(marlin_device *device)
{
    for (int round = 0; round < ROUNDS; round++) {
        chain c = make_chain(device);
        expect(marlin_device_keep_resident(device) == MARLIN_OK, "new buffers are made resident");
        expect(submit(&c, 0, 1) == MARLIN_OK, "a replay starts");
        expect(submit(&c, 0, 1) == MARLIN_EBUSY, "one replay at a time");
        expect(marlin_program_wait(c.program) == MARLIN_OK, "a replay ends");
        check_result(&c);
        expect(submit(&c, 1, 1) == MARLIN_OK, "a part of it starts");
        if (round % 2) expect(marlin_program_wait(c.program) == MARLIN_OK, "the part ends");
        end_chain(&c); /* every other time in flight */
    }
}

static void be_refused(void)
{
    marlin_device_options options = {0};
    marlin_device *other = NULL;
    memset(options.isa, 'x', sizeof options.isa); /* without a zero byte */
    expect(marlin_device_open(&options, &other) == MARLIN_EINVAL, "no such instruction set");
    marlin_device *device = open_device();
    marlin_device_info info;
    expect(marlin_device_describe(device, &info) == MARLIN_OK && info.name[0], "it has a name");
    expect(marlin_buffer_create(device, INT64_MAX / 2) < 0, "more memory than there is");
    expect(marlin_buffer_map(device, "/nowhere", 0, 1) == MARLIN_EIO, "no such file");
    chain c = make_chain(device);
    expect(marlin_buffer_wrap(device, (char *)c.wrapped + 64, 64) == MARLIN_EINVAL,
           "memory that begins within a page");
    marlin_program *none = NULL;
    c.records[1].bindings[2].buffer = 99;
    expect(marlin_program_create(device, c.records, CHAIN, &none) == MARLIN_EINVAL && !none,
           "a record of no buffer");
    expect(submit(&c, 0, 2) == MARLIN_EINVAL, "more rows than there are");
    expect(marlin_program_wait(c.program) == MARLIN_EINVAL, "nothing is in flight");
    end_chain(&c);
    int mapped = marlin_buffer_map(device, "/proc/self/exe", 100, 64);
    expect(mapped > 0 && marlin_buffer_release(device, mapped) == MARLIN_OK, "a file is mapped");
    expect(marlin_buffer_release(device, mapped) == MARLIN_EINVAL, "it was released");
    marlin_buffer_create(device, BYTES); /* closing frees it */
    marlin_device_close(device);
}

/* ---- failures of the simulated GPU ---- */

static void lack_a_pipeline(void)
{
    setenv("SIMMETAL_NIL_PIPELINE", "silu_mul", 1);
    marlin_device *device = open_device();
    int id = marlin_buffer_create(device, BYTES);
    marlin_dispatch record = silu_record(id, marlin_buffer_create(device, BYTES));
    marlin_program *none = NULL;
    expect(marlin_program_create(device, &record, 1, &none) == MARLIN_EDEVICE && !none,
           "the kernel cannot be made");
    marlin_device_close(device);
    unsetenv("SIMMETAL_NIL_PIPELINE");
}

static void fail_at(const char *dispatch)
{
    setenv("SIMMETAL_FAIL", dispatch, 1);
    marlin_device *device = open_device();
    chain c = make_chain(device);
    for (int i = 0; i < 2; i++) {
        expect(submit(&c, 0, 1) == MARLIN_OK, "a replay starts");
        expect(marlin_program_wait(c.program) == MARLIN_EDEVICE, "it fails");
    }
    end_chain(&c);
    marlin_device_close(device);
    unsetenv("SIMMETAL_FAIL");
}

/* ---- threads ---- */

typedef struct {
    marlin_device *device;
    pthread_mutex_t turn;
} shared;

/* A device of its own, then its turns at the shared one. */
static void *use_devices(void *context)
{
    shared *s = context;
    marlin_device *own = open_device();
    use_device(own);
    marlin_device_close(own);
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&s->turn);
        use_device(s->device);
        pthread_mutex_unlock(&s->turn);
    }
    return NULL;
}

static void use_threads(void)
{
    shared s = {open_device(), PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        expect(pthread_create(&threads[i], NULL, use_devices, &s) == 0, "a thread starts");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    use_device(s.device);
    marlin_device_close(s.device);
}

/* ---- mistakes ---- */

typedef struct {
    marlin_device *device;
    int buffer;
    pthread_barrier_t both;
} meeting;

static void *read_buffer(void *context)
{
    meeting *m = context;
    pthread_barrier_wait(&m->both);
    marlin_buffer_contents(m->device, m->buffer);
    return NULL;
}

/* A race that breaks nothing, as a program holds the buffer; no lock orders the two by chance. */
static void release_meanwhile(const chain *c)
{
    pthread_t thread;
    meeting m = {.device = c->device, .buffer = c->buffers[1]};
    pthread_barrier_init(&m.both, NULL, 2);
    expect(pthread_create(&thread, NULL, read_buffer, &m) == 0, "a thread starts");
    pthread_barrier_wait(&m.both);
    marlin_buffer_release(m.device, m.buffer);
    pthread_join(thread, NULL);
}

static void make_mistake(const char *mistake)
{
    marlin_device *device = open_device();
    chain c = make_chain(device);
    if (strcmp(mistake, "a program that is never destroyed") == 0) {
        c.program = NULL;
    } else if (strcmp(mistake, "a program that is destroyed twice") == 0) {
        marlin_program_destroy(c.program);
    } else if (strcmp(mistake, "memory that is freed while it is wrapped") == 0) {
        free(c.wrapped);
        submit(&c, 0, 1);
        marlin_program_wait(c.program);
    } else if (strcmp(mistake, "a record at an odd address") == 0) {
        char *odd = malloc(sizeof(marlin_dispatch) + 1);
        memcpy(odd + 1, c.records, sizeof(marlin_dispatch));
        marlin_program *program = NULL;
        marlin_program_create(device, (const void *)(odd + 1), 1, &program);
    } else if (strcmp(mistake, "a buffer released while a thread reads it") == 0) {
        release_meanwhile(&c);
    }
    end_chain(&c);
    marlin_device_close(device);
}

static void use_all(void)
{
    be_refused();
    lack_a_pipeline();
    fail_at("1");
    fail_at("2:timeout");
    use_threads();
}

int main(int argc, char **argv)
{
    expect(argc == 2, "usage: lifetimes MISTAKE");
    /* Whoever uses a class of GNUstep's first has it made, which is never freed. */
    __lsan_disable();
    use_all();
    __lsan_enable();
    use_all();
    make_mistake(argv[1]);
    puts("fine");
    return 0;
}
