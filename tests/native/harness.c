/* harness.c: counting checks, making seeded data, running a case on a device (harness.h). */
#include "harness.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int num_passed, num_failed;

bool check(bool holds, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf(holds ? "ok      " : "FAILED  ");
    vprintf(format, arguments);
    putchar('\n');
    fflush(stdout);
    va_end(arguments);
    *(holds ? &num_passed : &num_failed) += 1;
    return holds;
}

int report(void)
{
    printf("%d passed, %d failed\n", num_passed, num_failed);
    return num_failed == 0 ? 0 : 1;
}

static void *new_memory(int64_t bytes)
{
    void *memory = malloc((size_t)bytes);
    if (!memory) {
        fprintf(stderr, "no memory for %lld bytes\n", (long long)bytes);
        exit(2);
    }
    return memory;
}

/* ---- building a case ---- */

test_case *new_case(uint64_t seed, const char *format, ...)
{
    test_case *c = new_memory(sizeof *c);
    memset(c, 0, sizeof *c);
    c->random = seed * 0x9e3779b97f4a7c15u + 1;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->name, sizeof c->name, format, arguments);
    va_end(arguments);
    return c;
}

void free_case(test_case *c)
{
    for (int i = 0; i < c->num_blocks; i++) free(c->blocks[i].data);
    free(c);
}

uint64_t next_random(test_case *c)
{
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return c->random >> 11;
}

int add_bytes(test_case *c, block_kind kind, int64_t bytes)
{
    if (c->num_blocks == MAX_BLOCKS) {
        fprintf(stderr, "%s has more than %d blocks\n", c->name, MAX_BLOCKS);
        exit(2);
    }
    block *b = &c->blocks[c->num_blocks++];
    *b = (block){.kind = kind, .bytes = bytes, .data = new_memory(bytes)};
    memset(b->data, 0xa5, (size_t)bytes);
    return c->num_blocks;
}

int add_random_bytes(test_case *c, int64_t bytes)
{
    int number = add_bytes(c, INPUT, bytes);
    for (int64_t i = 0; i < bytes; i++) c->blocks[number - 1].data[i] = (uint8_t)next_random(c);
    return number;
}

int add_floats(test_case *c, block_kind kind, int64_t count, float low, float high)
{
    int number = add_bytes(c, kind, 4 * count);
    float *values = (float *)c->blocks[number - 1].data;
    for (int64_t i = 0; i < count; i++)
        values[i] = low + (high - low) * (float)(next_random(c) & 0xffffff) / 16777216.0f;
    return number;
}

int add_halves(test_case *c, block_kind kind, int64_t count)
{
    int number = add_bytes(c, kind, 2 * count);
    uint16_t *values = (uint16_t *)c->blocks[number - 1].data;
    for (int64_t i = 0; i < count; i++)
        values[i] = (uint16_t)((next_random(c) & 0x83ff) | (next_random(c) & 15) << 10);
    return number;
}

int add_integers(test_case *c, int64_t count, const int32_t *values)
{
    int number = add_bytes(c, INPUT, 4 * count);
    memcpy(c->blocks[number - 1].data, values, (size_t)(4 * count));
    return number;
}

marlin_dispatch *add_record(test_case *c, const char *kernel, const void *params,
                            size_t param_bytes, int num_bindings)
{
    if (c->num_records == MAX_RECORDS) {
        fprintf(stderr, "%s has more than %d records\n", c->name, MAX_RECORDS);
        exit(2);
    }
    marlin_dispatch *record = &c->records[c->num_records++];
    *record = (marlin_dispatch){.kernel = marlin_kernel_find(kernel),
                                .barrier = 1,
                                .num_bindings = num_bindings,
                                .param_bytes = (int32_t)param_bytes};
    memcpy(record->params, params, param_bytes);
    return record;
}

void bind(test_case *c, marlin_dispatch *record, int slot, int number, int access)
{
    record->bindings[slot] = (marlin_binding){
        .buffer = number, .access = access, .offset = 0, .bytes = c->blocks[number - 1].bytes};
}

/* ---- running it ---- */

marlin_device *open_device(const char *isa, int num_threads)
{
    marlin_device_options options = {.num_threads = num_threads};
    snprintf(options.isa, sizeof options.isa, "%s", isa);
    marlin_device *device = NULL;
    return marlin_device_open(&options, &device) == MARLIN_OK ? device : NULL;
}

int load_case(const test_case *c, marlin_device *device, loaded_case *loaded)
{
    *loaded = (loaded_case){.c = c, .device = device};
    for (int i = 0; i < c->num_blocks; i++) {
        loaded->memory[i] = new_memory(c->blocks[i].bytes);
        memcpy(loaded->memory[i], c->blocks[i].data, (size_t)c->blocks[i].bytes);
        loaded->ids[i] = marlin_buffer_wrap(device, loaded->memory[i], c->blocks[i].bytes);
    }
    static marlin_dispatch records[MAX_RECORDS];
    memcpy(records, c->records, sizeof records);
    for (int i = 0; i < c->num_records; i++) {
        for (int j = 0; j < MARLIN_MAX_BINDINGS; j++) {
            int32_t number = records[i].bindings[j].buffer;
            if (number > 0 && number <= c->num_blocks)
                records[i].bindings[j].buffer = loaded->ids[number - 1];
        }
    }
    int code = marlin_program_create(device, records, c->num_records, &loaded->program);
    if (code != MARLIN_OK) unload_case(loaded);
    return code;
}

int replay(loaded_case *loaded, int first, int count)
{
    int code =
        marlin_program_submit(loaded->program, first, count, loaded->c->vars, MARLIN_MAX_VARS);
    return code == MARLIN_OK ? marlin_program_wait(loaded->program) : code;
}

void unload_case(loaded_case *loaded)
{
    marlin_program_destroy(loaded->program);
    for (int i = 0; i < loaded->c->num_blocks; i++) {
        marlin_buffer_release(loaded->device, loaded->ids[i]);
        free(loaded->memory[i]);
    }
    memset(loaded->memory, 0, sizeof loaded->memory);
    loaded->program = NULL;
}

int run_case(const test_case *c, marlin_device *device, uint8_t *results[MAX_BLOCKS])
{
    loaded_case loaded;
    memset(results, 0, MAX_BLOCKS * sizeof *results);
    int code = load_case(c, device, &loaded);
    if (code != MARLIN_OK) return code;
    code = replay(&loaded, 0, c->num_records);
    if (code == MARLIN_OK) {
        memcpy(results, loaded.memory, sizeof loaded.memory);
        memset(loaded.memory, 0, sizeof loaded.memory);
    }
    unload_case(&loaded);
    return code;
}

void free_results(uint8_t *results[MAX_BLOCKS])
{
    for (int i = 0; i < MAX_BLOCKS; i++) free(results[i]);
}

int same_bits(const test_case *c, uint8_t *const a[], uint8_t *const b[])
{
    for (int i = 0; i < c->num_blocks; i++)
        if (memcmp(a[i], b[i], (size_t)c->blocks[i].bytes) != 0) return i + 1;
    return 0;
}

int changed_input(const test_case *c, uint8_t *const results[])
{
    for (int i = 0; i < c->num_blocks; i++) {
        const block *b = &c->blocks[i];
        if (b->kind == INPUT && memcmp(results[i], b->data, (size_t)b->bytes) != 0) return i + 1;
    }
    return 0;
}
