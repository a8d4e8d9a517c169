/* kernel_checks.c: what every kernel gives, over all cases (cases.h): the scalar set's bits in
 * every set, for any number of threads, any barriers, any split of a replay.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

static const char *const isa_names[] = {"avx512", "avx2", "i8mm", "neon", "scalar"};
/* One worker; more than most tests' cores; more than most cases have units. */
static const int thread_counts[] = {1, 2, 5};
#define NUM_ISAS 5
#define NUM_THREAD_COUNTS 3

/* NULL where this machine or build lacks the set. */
typedef struct {
    marlin_device *at[NUM_ISAS][NUM_THREAD_COUNTS];
} devices;

static void open_all(devices *d)
{
    for (int i = 0; i < NUM_ISAS; i++)
        for (int j = 0; j < NUM_THREAD_COUNTS; j++)
            d->at[i][j] = open_device(isa_names[i], thread_counts[j]);
}

static void close_all(devices *d)
{
    for (int i = 0; i < NUM_ISAS; i++)
        for (int j = 0; j < NUM_THREAD_COUNTS; j++) marlin_device_close(d->at[i][j]);
}

/* Runs on every device of one set; compares them with each other and with the scalar set. */
static void check_isa(const test_case *c, marlin_device *const on[NUM_THREAD_COUNTS],
                      const char *isa, uint8_t *const reference[MAX_BLOCKS])
{
    uint8_t *first[MAX_BLOCKS], *other[MAX_BLOCKS];
    int code = run_case(c, on[0], first);
    if (!check(code == MARLIN_OK, "%s: %s runs", isa, c->name)) {
        printf("        %s\n", marlin_last_error());
        return;
    }
    int differs = same_bits(c, reference, first);
    check(!differs, "%s: %s has scalar's bits (block %d)", isa, c->name, differs);
    differs = changed_input(c, first);
    check(!differs, "%s: %s leaves its inputs (block %d)", isa, c->name, differs);
    for (int i = 1; i < NUM_THREAD_COUNTS; i++) {
        code = run_case(c, on[i], other);
        differs = code == MARLIN_OK ? same_bits(c, first, other) : -1;
        check(!differs, "%s: %s has the same bits with %d threads (block %d)", isa, c->name,
              thread_counts[i], differs);
        if (code == MARLIN_OK) free_results(other);
    }
    free_results(first);
}

/* FNV-1a of every block after every case: what one machine prints, every other one does. */
static uint64_t all_bits = 0xcbf29ce484222325u;

static void add_bits(const test_case *c, uint8_t *const results[])
{
    for (int i = 0; i < c->num_blocks; i++)
        for (int64_t at = 0; at < c->blocks[i].bytes; at++)
            all_bits = (all_bits ^ results[i][at]) * 0x100000001b3u;
}

void check_kernels(void)
{
    devices d;
    open_all(&d);
    for (int f = 0; f < num_case_families; f++) {
        for (int variant = 0; variant < case_families[f].num_variants; variant++) {
            test_case *c = case_families[f].make(variant);
            uint8_t *reference[MAX_BLOCKS];
            int code = run_case(c, d.at[NUM_ISAS - 1][0], reference);
            if (!check(code == MARLIN_OK, "scalar: %s runs", c->name)) {
                printf("        %s\n", marlin_last_error());
            } else {
                add_bits(c, reference);
                for (int i = 0; i < NUM_ISAS; i++)
                    if (d.at[i][0]) check_isa(c, d.at[i], isa_names[i], reference);
                free_results(reference);
            }
            free_case(c);
        }
    }
    close_all(&d);
    printf("bits of all cases: %016llx\n", (unsigned long long)all_bits);
}

/* A copy of a linear case that computes each row in a dispatch of its own. */
static test_case *one_row_at_a_time(const test_case *c)
{
    test_case *copy = malloc(sizeof *copy);
    if (!copy) exit(2);
    *copy = *c;
    int rows = c->vars[2];
    marlin_dispatch whole = c->records[0];
    copy->vars[2] = 1;
    copy->num_records = rows;
    for (int row = 0; row < rows; row++) {
        copy->records[row] = whole;
        copy->records[row].barrier = 0;
        for (int slot = 0; slot <= 5; slot += 5) {
            marlin_binding *b = &copy->records[row].bindings[slot];
            b->bytes /= rows;
            b->offset = row * b->bytes;
        }
    }
    return copy;
}

static void check_rows_alone(const devices *d)
{
    for (int variant = 0; variant < case_families[0].num_variants; variant++) {
        test_case *c = make_linear(variant);
        test_case *alone = one_row_at_a_time(c);
        for (int i = 0; i < NUM_ISAS; i++) {
            uint8_t *together[MAX_BLOCKS], *apart[MAX_BLOCKS];
            if (!d->at[i][0] || c->vars[2] == 1) continue;
            int code = run_case(c, d->at[i][0], together);
            int alone_code = run_case(alone, d->at[i][1], apart);
            bool same =
                code == MARLIN_OK && alone_code == MARLIN_OK && !same_bits(c, together, apart);
            check(same, "%s: %s gives each row the bits it has alone", isa_names[i], c->name);
            if (code == MARLIN_OK) free_results(together);
            if (alone_code == MARLIN_OK) free_results(apart);
        }
        free(alone);
        free_case(c);
    }
}

static void check_split_attention(const devices *d)
{
    for (int variant = 0; variant < FIRST_SPLIT_ATTENTION; variant++) {
        test_case *whole = make_attention(variant);
        test_case *split = make_attention(FIRST_SPLIT_ATTENTION + variant);
        int out = whole->records[0].bindings[5].buffer - 1;
        for (int i = 0; i < NUM_ISAS; i++) {
            uint8_t *a[MAX_BLOCKS], *b[MAX_BLOCKS];
            if (!d->at[i][0]) continue;
            bool ran = run_case(whole, d->at[i][1], a) == MARLIN_OK;
            ran = run_case(split, d->at[i][2], b) == MARLIN_OK && ran;
            bool same = ran && !memcmp(a[out], b[out], (size_t)whole->blocks[out].bytes);
            check(same, "%s: %s has the bits of attention", isa_names[i], split->name);
            free_results(a);
            free_results(b);
        }
        free_case(whole);
        free_case(split);
    }
}

/* Replays of a layer: one dispatch a submit, in pieces that cut through dispatches that share an
 * input, and with every barrier set. */
static void check_pieces(const test_case *c, marlin_device *device, const char *isa, int threads)
{
    uint8_t *whole[MAX_BLOCKS], *barred[MAX_BLOCKS];
    if (!check(run_case(c, device, whole) == MARLIN_OK, "%s: %s runs", isa, c->name)) return;
    static const int sizes[] = {1, 3, 4};
    for (int i = 0; i < 3; i++) {
        loaded_case loaded;
        int code = load_case(c, device, &loaded);
        if (!check(code == MARLIN_OK, "%s: %s loads again", isa, c->name)) continue;
        for (int first = 0; first < c->num_records && code == MARLIN_OK; first += sizes[i]) {
            int left = c->num_records - first;
            code = replay(&loaded, first, left < sizes[i] ? left : sizes[i]);
        }
        check(code == MARLIN_OK && !same_bits(c, whole, loaded.memory),
              "%s: %s in replays of %d, %d threads, has the same bits", isa, c->name, sizes[i],
              threads);
        unload_case(&loaded);
    }
    test_case all = *c;
    for (int i = 0; i < all.num_records; i++) all.records[i].barrier = 1;
    int code = run_case(&all, device, barred);
    check(code == MARLIN_OK && !same_bits(c, whole, barred),
          "%s: %s with every barrier, %d threads, has the same bits", isa, c->name, threads);
    if (code == MARLIN_OK) free_results(barred);
    free_results(whole);
}

/* Many replays in a row, with pauses so short and so long that workers both spin and sleep. */
static void check_many_replays(const devices *d)
{
    for (int i = 0; i < NUM_ISAS; i++) {
        if (!d->at[i][0]) continue;
        test_case *c = make_linear(3);
        loaded_case loaded;
        uint8_t *expected[MAX_BLOCKS];
        bool same = run_case(c, d->at[i][0], expected) == MARLIN_OK;
        same = load_case(c, d->at[i][2], &loaded) == MARLIN_OK && same;
        volatile int pause = 0;
        for (int round = 0; round < 60 && same; round++) {
            for (int spin = 0; spin < round * round * 40; spin++) pause++;
            same = replay(&loaded, 0, 1) == MARLIN_OK && !same_bits(c, expected, loaded.memory);
        }
        check(same, "%s: 60 replays have the same bits", isa_names[i]);
        unload_case(&loaded);
        free_results(expected);
        free_case(c);
    }
}

void check_replays(void)
{
    devices d;
    open_all(&d);
    check_rows_alone(&d);
    check_split_attention(&d);
    for (int variant = 0; variant < 2; variant++) {
        test_case *c = make_layer(variant);
        for (int i = 0; i < NUM_ISAS; i++)
            for (int j = 0; j < NUM_THREAD_COUNTS; j++)
                if (d.at[i][j]) check_pieces(c, d.at[i][j], isa_names[i], thread_counts[j]);
        free_case(c);
    }
    check_many_replays(&d);
    close_all(&d);
}
