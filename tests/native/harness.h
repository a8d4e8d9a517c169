/* harness.h: how the native tests describe a program, run it and report. Over marlin.h and params.h
 * alone: nothing here knows how the device does its work.
 *
 * A test case owns the data of its buffers. A run copies each block into memory of exactly its size
 * and wraps that, so that an address sanitizer sees one byte past any binding. */
#ifndef MARLIN_TEST_HARNESS_H
#define MARLIN_TEST_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "marlin.h"
#include "block_types.h"
#include "params.h"

#define MAX_BLOCKS 56
#define MAX_RECORDS 24
#define MAX_DEVICES 12

/* What a run does to a block. All that is written has the same bits in every instruction set. */
typedef enum {
    INPUT,     /* not written: as it was */
    EXACT,     /* written: integers or single operations */
    SUMMED,    /* written: sums across lanes */
    QUANTIZED, /* written: behind activations rounded to int8 */
    SCRATCH    /* written: halfway results */
} block_kind;

typedef struct {
    block_kind kind;
    int64_t bytes;
    uint8_t *data;
} block;

/* Bindings of records name blocks, from 1, until the case is run. */
typedef struct {
    char name[96];
    block blocks[MAX_BLOCKS];
    int num_blocks;
    marlin_dispatch records[MAX_RECORDS];
    int num_records;
    int32_t vars[MARLIN_MAX_VARS];
    uint64_t random;
} test_case;

/* A case with its buffers wrapped and its program created on one device. */
typedef struct {
    const test_case *c;
    marlin_device *device;
    marlin_program *program;
    uint8_t *memory[MAX_BLOCKS];
    int32_t ids[MAX_BLOCKS];
} loaded_case;

/* One line for one check; the text says what holds. Returns `holds`. */
bool check(bool holds, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The line "N passed, M failed"; the program's exit status. */
int report(void);

/* ---- building a case: sizes in elements where not bytes ---- */

test_case *new_case(uint64_t seed, const char *format, ...) __attribute__((format(printf, 2, 3)));
void free_case(test_case *c);
uint64_t next_random(test_case *c);
/* Each returns the new block's number. */
int add_bytes(test_case *c, block_kind kind, int64_t bytes); /* filled with a pattern */
int add_random_bytes(test_case *c, int64_t bytes);
int add_floats(test_case *c, block_kind kind, int64_t count, float low, float high);
int add_halves(test_case *c, block_kind kind, int64_t count); /* finite, |h| <= 2 */
int add_integers(test_case *c, int64_t count, const int32_t *values);
marlin_dispatch *add_record(test_case *c, const char *kernel, const void *params,
                            size_t param_bytes, int num_bindings);
void bind(test_case *c, marlin_dispatch *record, int slot, int number, int access);

/* ---- running it ---- */

marlin_device *open_device(const char *isa, int num_threads);
/* The program's creation: its code. On an error nothing is left but last_error. */
int load_case(const test_case *c, marlin_device *device, loaded_case *loaded);
/* Submit dispatches [first, first + count) with the case's vars, and wait. */
int replay(loaded_case *loaded, int first, int count);
void unload_case(loaded_case *loaded);
/* All of the three; on MARLIN_OK `results` holds every block's bytes (free_results). */
int run_case(const test_case *c, marlin_device *device, uint8_t *results[MAX_BLOCKS]);
void free_results(uint8_t *results[MAX_BLOCKS]);

/* Number of the first block that differs, or 0. */
int same_bits(const test_case *c, uint8_t *const a[], uint8_t *const b[]);
/* Number of the first INPUT block that is not as it was, or 0. */
int changed_input(const test_case *c, uint8_t *const results[]);

#endif
