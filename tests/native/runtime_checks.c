/* runtime_checks.c: submitting, waiting, indices that a kernel meets in a buffer, devices and
 * buffers, and the orders in which all of these may end. */
#include <stdio.h>
#include <string.h>

#include "cases.h"

/* ---- submit and wait ---- */

void check_submit_refusals(void)
{
    marlin_device *device = open_device("", 2);
    test_case *c = make_layer(0);
    loaded_case loaded;
    if (!check(load_case(c, device, &loaded) == MARLIN_OK, "a layer loads")) return;
    marlin_program *program = loaded.program;
    int32_t vars[MARLIN_MAX_VARS + 1] = {0}, n = c->num_records;
    static const struct {
        const char *what;
        int32_t first, count, num_vars;
    } ranges[] = {
        {"no dispatches", 0, 0, 3},
        {"a negative count", 0, -1, 3},
        {"a negative start", -1, 2, 3},
        {"a range past the end", 1, 1 << 30, 3},
        {"a start past the end", 99, 1, 3},
        {"a range that overflows", 2, INT32_MAX, 3},
        {"nine vars", 0, 1, 9},
        {"a negative number of vars", 0, 1, -1},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        check(marlin_program_submit(program, ranges[i].first, ranges[i].count, vars,
                                    ranges[i].num_vars) == MARLIN_EINVAL,
              "submit refuses %s", ranges[i].what);
    check(marlin_program_submit(program, 0, 1, NULL, 1) == MARLIN_EINVAL, "submit refuses no vars");
    check(marlin_program_submit(NULL, 0, 1, vars, 1) == MARLIN_EINVAL, "submit refuses no program");
    for (int i = 0; i < 3; i++) {
        memcpy(vars, c->vars, sizeof c->vars);
        vars[i] = -1;
        check(marlin_program_submit(program, 0, n, vars, 3) == MARLIN_EINVAL,
              "submit refuses vars[%d] = -1", i);
        vars[i] = c->vars[i] + 1;
        check(marlin_program_submit(program, 0, n, vars, 3) == MARLIN_EINVAL,
              "submit refuses vars[%d] one more than the buffers hold", i);
    }
    check(marlin_program_wait(program) == MARLIN_EINVAL, "wait refuses with no replay in flight");
    check(marlin_program_wait(NULL) == MARLIN_EINVAL, "wait refuses no program");
    check(marlin_program_submit(program, 0, n, NULL, 0) == MARLIN_OK &&
              marlin_program_wait(program) == MARLIN_OK,
          "a replay of no rows runs");
    bool untouched = true;
    for (int i = 0; i < c->num_blocks; i++)
        untouched =
            untouched && !memcmp(loaded.memory[i], c->blocks[i].data, (size_t)c->blocks[i].bytes);
    check(untouched, "a replay of no rows writes nothing");
    loaded_case second;
    check(load_case(c, device, &second) == MARLIN_OK, "a second program loads");
    check(marlin_program_submit(program, 0, n, c->vars, 8) == MARLIN_OK, "a replay starts");
    check(marlin_program_submit(program, 0, n, c->vars, 8) == MARLIN_EBUSY,
          "submit refuses while its replay is in flight");
    check(marlin_program_submit(second.program, 0, n, c->vars, 8) == MARLIN_EBUSY,
          "submit refuses while another program's replay is in flight");
    check(marlin_program_wait(second.program) == MARLIN_EINVAL,
          "wait refuses another program's replay");
    check(marlin_program_wait(program) == MARLIN_OK, "the replay in flight ends well");
    check(replay(&second, 0, n) == MARLIN_OK, "then the other program runs");
    unload_case(&loaded);
    unload_case(&second);
    free_case(c);
    marlin_device_close(device);
}

/* ---- indices in buffers ---- */

typedef struct {
    const char *what;
    test_case *(*make)(int variant);
    int variant, slot, index; /* int32 `index` of what the first record binds at `slot` */
    int32_t value;
} index_change;

#define SPLIT FIRST_SPLIT_ATTENTION

static const index_change index_changes[] = {
    {"token id -1", make_embed, 0, 0, 0, -1},
    {"token id vocab_size", make_embed, 0, 0, 2, 17},
    {"token id far out", make_embed, 12, 0, 1, INT32_MAX},
    {"slot -1", make_rope, 2, 4, 3, -1},
    {"slot past the last", make_rope, 2, 4, 0, 48},
    {"slot far out", make_rope, 1, 4, 0, INT32_MIN},
    {"row -1", make_rows, 2, 0, 1, -1},
    {"row past the last", make_rows, 2, 0, 3, 7},
    {"block id -1", make_attention, 0, 3, 33, -1},
    {"block id num_blocks", make_attention, 0, 3, 0, 36},
    {"block id far out", make_attention, SPLIT, 3, 2, INT32_MAX},
    {"tile from row -1", make_attention, 0, 4, 0, -1},
    {"tile past the last row", make_attention, 0, 4, 8, 18},
    {"tile far past the last row", make_attention, 0, 4, 8, INT32_MAX},
    {"tile of no rows", make_attention, 0, 4, 5, 0},
    {"tile of 17 rows", make_attention, 0, 4, 1, 17},
    {"tile of -1 rows", make_attention, 0, 4, 1, -1},
    {"tile of sequence -1", make_attention, 0, 4, 2, -1},
    {"tile of sequence 2", make_attention, 0, 4, 10, 2},
    {"tile at position -1", make_attention, 0, 4, 3, -1},
    {"tile past the table", make_attention, 0, 4, 7, 34 * 16},
    {"tile at the last position of all", make_attention, 0, 4, 7, INT32_MAX},
    {"tile where the sequence has no block", make_attention, 0, 4, 11, 26},
    {"tile from row -1", make_attention, SPLIT, 4, 0, -1},
    {"tile past the last row", make_attention, SPLIT, 4, 8, 18},
    {"tile past the table", make_attention, SPLIT, 4, 7, 34 * 16},
    {"mask of row -1", make_mask_logits, 0, 2, 0, -1},
    {"mask of row 3", make_mask_logits, 0, 2, 1, 3},
    {"first entry -1", make_penalize, 0, 2, 0, -1},
    {"entries that end before they begin", make_penalize, 0, 2, 1, 3},
    {"entries past the last", make_penalize, 0, 2, 3, 6},
    {"penalty for token -1", make_penalize, 0, 1, 0, -1},
    {"penalty for token vocab_size", make_penalize, 0, 1, 12, 37},
};

/* The replay fails, the text names the kernel, and the device works on. */
static void check_index_error(const index_change *change, marlin_device *device, int num_threads)
{
    test_case *c = change->make(change->variant);
    const marlin_dispatch *record = &c->records[0];
    block *b = &c->blocks[record->bindings[change->slot].buffer - 1];
    int32_t good;
    memcpy(&good, b->data + 4 * change->index, 4);
    memcpy(b->data + 4 * change->index, &change->value, 4);
    uint8_t *results[MAX_BLOCKS];
    int code = run_case(c, device, results);
    if (code == MARLIN_OK) free_results(results);
    bool is_named = strstr(marlin_last_error(), "dispatch 0") != NULL;
    check(code == MARLIN_EDEVICE && is_named, "%s: fails with %s, %d threads", c->name,
          change->what, num_threads);
    memcpy(b->data + 4 * change->index, &good, 4);
    code = run_case(c, device, results);
    if (code == MARLIN_OK) free_results(results);
    check(code == MARLIN_OK, "%s: runs again after %s", c->name, change->what);
    free_case(c);
}

/* attention_combine has the tiles to itself when it is replayed alone. */
static void check_combine_errors(marlin_device *device)
{
    static const int32_t changes[][2] = {{0, -1},      {0, 24},        {1, 0}, {1, INT32_MAX},
                                         {7, 3 * 256}, {7, INT32_MAX}, {3, -1}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        test_case *c = make_attention(SPLIT);
        int tiles = c->records[1].bindings[4].buffer - 1;
        memcpy(c->blocks[tiles].data + 4 * changes[i][0], &changes[i][1], 4);
        loaded_case loaded;
        if (check(load_case(c, device, &loaded) == MARLIN_OK, "attention_combine loads")) {
            check(replay(&loaded, 1, 1) == MARLIN_EDEVICE,
                  "attention_combine: fails with %d in field %d of the tiles", changes[i][1],
                  changes[i][0]);
            unload_case(&loaded);
        }
        free_case(c);
    }
}

/* A context longer than the splits that a step was given. */
static void check_too_few_splits(marlin_device *device)
{
    test_case *c = make_attention(SPLIT);
    c->vars[3] = 2;
    uint8_t *results[MAX_BLOCKS];
    int code = run_case(c, device, results);
    if (code == MARLIN_OK) free_results(results);
    check(code == MARLIN_EDEVICE, "attention_split: fails with fewer splits than the context has");
    free_case(c);
}

void check_index_errors(void)
{
    for (int num_threads = 1; num_threads <= 3; num_threads += 2) {
        marlin_device *device = open_device("", num_threads);
        for (size_t i = 0; i < sizeof index_changes / sizeof *index_changes; i++)
            check_index_error(&index_changes[i], device, num_threads);
        check_combine_errors(device);
        check_too_few_splits(device);
        marlin_device_close(device);
    }
}

/* ---- devices ---- */

static int open_code(int num_threads, const char *isa)
{
    marlin_device_options options = {.num_threads = num_threads};
    memcpy(options.isa, isa, strlen(isa));
    marlin_device *device = NULL;
    int code = marlin_device_open(&options, &device);
    marlin_device_close(device);
    return code;
}

static void check_program_ends(marlin_device *device)
{
    test_case *c = make_layer(0);
    loaded_case a, b;
    bool loads = load_case(c, device, &a) == MARLIN_OK && load_case(c, device, &b) == MARLIN_OK;
    if (!check(loads, "two programs load")) return;
    for (int i = 0; i < c->num_blocks; i++) marlin_buffer_release(device, a.ids[i]);
    check(!marlin_buffer_contents(device, a.ids[0]), "a released buffer has no contents");
    check(replay(&a, 0, c->num_records) == MARLIN_OK,
          "a program runs on buffers that its caller has released");
    check(marlin_program_submit(a.program, 0, c->num_records, c->vars, 8) == MARLIN_OK,
          "a replay starts");
    marlin_program_destroy(a.program);
    check(replay(&b, 0, c->num_records) == MARLIN_OK,
          "destroying a program ends its replay: another runs");
    a.program = NULL;
    unload_case(&a);
    unload_case(&b);
    marlin_program_destroy(NULL);
    free_case(c);
}

void check_devices(void)
{
    marlin_device_options options = {0};
    marlin_device *device = NULL;
    check(marlin_abi_version() == MARLIN_ABI_VERSION, "the library has the header's version");
    check(marlin_device_open(NULL, &device) == MARLIN_EINVAL, "open refuses no options");
    check(marlin_device_open(&options, NULL) == MARLIN_EINVAL, "open refuses nowhere to put it");
    check(open_code(-1, "") == MARLIN_EINVAL, "open refuses -1 threads");
    check(open_code(257, "") == MARLIN_EINVAL, "open refuses 257 threads");
    check(open_code(1, "sse9") == MARLIN_EINVAL, "open refuses a set that it has not");
    check(open_code(1, "a name of 16 chr") == MARLIN_EINVAL, "open refuses a name with no end");
    check(open_code(0, "") == MARLIN_OK, "open takes as many threads as there are cores");
    check(open_code(64, "scalar") == MARLIN_OK, "open takes more threads than there are cores");
    check(marlin_kernel_find("no_such_kernel") == MARLIN_EINVAL, "no kernel has another's name");
    check(marlin_kernel_find(NULL) == MARLIN_EINVAL, "no kernel has no name");
    marlin_device_close(NULL);

    device = open_device("", 3);
    marlin_device_info info;
    check(marlin_device_describe(device, NULL) == MARLIN_EINVAL, "describe refuses nowhere");
    check(marlin_device_describe(NULL, &info) == MARLIN_EINVAL, "describe refuses no device");
    check(marlin_device_describe(device, &info) == MARLIN_OK && info.num_threads == 3 &&
              info.memory_bytes > 0 && info.page_bytes >= 4096 && strcmp(info.name, "CPU") == 0,
          "describe tells of a CPU with 3 threads");
    check(marlin_device_keep_resident(NULL) == MARLIN_EINVAL &&
              marlin_device_keep_resident(device) == MARLIN_OK,
          "memory is kept resident where there is a device");
    marlin_program *program = NULL;
    test_case *c = make_rms_norm(0);
    check(marlin_program_create(NULL, c->records, 1, &program) == MARLIN_EINVAL &&
              marlin_program_create(device, NULL, 1, &program) == MARLIN_EINVAL &&
              marlin_program_create(device, c->records, 0, &program) == MARLIN_EINVAL &&
              marlin_program_create(device, c->records, -1, &program) == MARLIN_EINVAL &&
              marlin_program_create(device, c->records, 1, NULL) == MARLIN_EINVAL,
          "create refuses no device, no records and nowhere to put the program");
    free_case(c);
    check_program_ends(device);
    marlin_device_close(device);
}

/* ---- buffers ---- */

static int64_t allocated_bytes(marlin_device *device)
{
    marlin_device_info info = {0};
    return marlin_device_describe(device, &info) == MARLIN_OK ? info.allocated_bytes : -1;
}

static void check_created(marlin_device *device)
{
    int id = marlin_buffer_create(device, 70001);
    const uint8_t *p = marlin_buffer_contents(device, id);
    bool zero = p != NULL;
    for (int i = 0; zero && i < 70001; i++) zero = p[i] == 0;
    check(id > 0 && zero, "a created buffer is zero");
    check((uintptr_t)p % 4096 == 0, "a created buffer begins on a page");
    check(allocated_bytes(device) == 70001, "a created buffer counts as allocated");
    check(marlin_buffer_create(device, 0) == MARLIN_EINVAL &&
              marlin_buffer_create(device, -1) == MARLIN_EINVAL &&
              marlin_buffer_create(NULL, 1) == MARLIN_EINVAL,
          "create refuses no bytes and no device");
    check(marlin_buffer_create(device, INT64_MAX) == MARLIN_ENOMEM,
          "create cannot have the whole address space");
    check(marlin_buffer_release(device, id) == MARLIN_OK, "a buffer is released");
    check(marlin_buffer_release(device, id) == MARLIN_EINVAL, "a buffer is released once");
    check(allocated_bytes(device) == 0, "a released buffer no longer counts");
    check(!marlin_buffer_contents(device, id) && !marlin_buffer_contents(device, 0) &&
              !marlin_buffer_contents(device, -1) && !marlin_buffer_contents(device, 1 << 30) &&
              !marlin_buffer_contents(NULL, 1),
          "an id that names nothing has no contents");
    check(marlin_buffer_create(device, 1) == id, "a free id is given again");
}

static void check_wrapped(marlin_device *device)
{
    uint8_t memory[3] = {1, 2, 3};
    check(marlin_buffer_wrap(device, NULL, 3) == MARLIN_EINVAL &&
              marlin_buffer_wrap(device, memory, 0) == MARLIN_EINVAL &&
              marlin_buffer_wrap(NULL, memory, 3) == MARLIN_EINVAL,
          "wrap refuses no memory, no bytes and no device");
    int64_t before = allocated_bytes(device);
    int id = marlin_buffer_wrap(device, memory, 3);
    check(id > 0 && marlin_buffer_contents(device, id) == memory, "wrapped memory stays in place");
    check(allocated_bytes(device) == before, "wrapped memory is not the device's");
    check(marlin_buffer_release(device, id) == MARLIN_OK && memory[2] == 3,
          "wrapped memory outlives its buffer");
}

static void check_mapped(marlin_device *device, const char *path)
{
    FILE *file = fopen(path, "wb");
    for (int i = 0; file && i < 9000; i++) fputc(i % 251, file);
    if (!check(file && fclose(file) == 0, "a file is written")) return;
    int id = marlin_buffer_map(device, path, 4099, 4901);
    const uint8_t *p = marlin_buffer_contents(device, id);
    bool same = p != NULL;
    for (int i = 0; same && i < 4901; i++) same = p[i] == (4099 + i) % 251;
    check(same, "a mapped buffer holds its part of the file, to the last byte");
    marlin_device_info info = {0};
    marlin_device_describe(device, &info);
    check(info.mapped_bytes == 4901, "a mapped buffer counts as mapped");
    check(marlin_buffer_map(device, path, 4100, 4901) == MARLIN_EIO &&
              marlin_buffer_map(device, path, 9001, 1) == MARLIN_EIO &&
              marlin_buffer_map(device, path, 1, INT64_MAX) == MARLIN_EIO,
          "map refuses what the file does not hold");
    check(marlin_buffer_map(device, path, -1, 1) == MARLIN_EINVAL &&
              marlin_buffer_map(device, path, 0, 0) == MARLIN_EINVAL &&
              marlin_buffer_map(device, NULL, 0, 1) == MARLIN_EINVAL &&
              marlin_buffer_map(NULL, path, 0, 1) == MARLIN_EINVAL,
          "map refuses a range or a path that is none");
    check(marlin_buffer_map(device, "/no/such/file", 0, 1) == MARLIN_EIO &&
              marlin_buffer_map(device, "/", 0, 1) == MARLIN_EIO,
          "map refuses a file that is not there or none");
    int weights = marlin_buffer_map(device, path, 0, 9000);
    test_case *c = make_rows(0);
    c->num_blocks = 0;
    static const int32_t access[] = {MARLIN_READ, MARLIN_READ, MARLIN_WRITE};
    for (int i = 0; i < 3; i++)
        c->records[0].bindings[i] = (marlin_binding){weights, access[i], 0, 720};
    marlin_program *program = NULL;
    check(marlin_program_create(device, c->records, 1, &program) == MARLIN_EINVAL,
          "a program that writes a mapped file is refused");
    c->records[0].bindings[2].access = MARLIN_READ;
    check(marlin_program_create(device, c->records, 1, &program) == MARLIN_EINVAL,
          "a program that writes a mapped file but says it reads it is refused");
    c->num_blocks = 3;
    free_case(c);
    marlin_buffer_release(device, weights);
    marlin_buffer_release(device, id);
    marlin_device_describe(device, &info);
    check(info.mapped_bytes == 0, "released mappings no longer count");
    remove(path);
}

static void check_held(marlin_device *device)
{
    test_case *c = make_rms_norm(1);
    loaded_case loaded;
    if (!check(load_case(c, device, &loaded) == MARLIN_OK, "a program loads")) return;
    int id = loaded.ids[0];
    marlin_buffer_release(device, id);
    int other = marlin_buffer_create(device, 8);
    check(other > 0 && other != id, "an id that a program holds is not given again");
    marlin_program_destroy(loaded.program);
    loaded.program = NULL;
    int again = marlin_buffer_create(device, 8);
    check(again == id, "it is, once the program is destroyed");
    loaded.ids[0] = again;
    unload_case(&loaded);
    free_case(c);
    marlin_buffer_release(device, other);
}

/* Ids grow past what the first table holds, and a replay in flight does not mind. */
static void check_many_buffers(marlin_device *device)
{
    test_case *c = make_linear(7);
    loaded_case loaded;
    bool good = load_case(c, device, &loaded) == MARLIN_OK &&
                marlin_program_submit(loaded.program, 0, 1, c->vars, 8) == MARLIN_OK;
    int ids[300];
    for (int i = 0; i < 300; i++) ids[i] = marlin_buffer_create(device, 16);
    good = good && marlin_program_wait(loaded.program) == MARLIN_OK;
    for (int i = 0; i < 300; i++) {
        good = good && ids[i] > 0;
        for (int j = 0; j < i; j++) good = good && ids[i] != ids[j];
    }
    for (int i = 0; i < 299; i++) good = good && marlin_buffer_release(device, ids[i]) == MARLIN_OK;
    check(good, "300 buffers made during a replay have ids of their own");
    unload_case(&loaded);
    free_case(c);
}

void check_buffers(const char *scratch_file)
{
    marlin_device *device = open_device("", 2);
    check_created(device);
    check_wrapped(device);
    check_mapped(device, scratch_file);
    check_held(device);
    check_many_buffers(device);
    marlin_device_close(device); /* frees the buffers that are left */
}
