/* metal.h: what the Metal device needs that is no Objective-C: how a record becomes a launch
 * (metal_launch.c) and how long that takes (metal_cost.c), and where its files lie
 * (metal_files.c). */
#ifndef MARLIN_METAL_H
#define MARLIN_METAL_H

#include <stddef.h>

#include "common/kernels.h"

/* Indices of a kernel's fixed arguments (shaders/common.h); its bindings come before them. */
enum { PARAMS_INDEX = MARLIN_MAX_BINDINGS, VARS_INDEX, CALL_INDEX, STATUS_INDEX };
/* Function constants, by index (shaders/common.h). */
enum {
    ROWS,
    GROUP_SIZE,
    FLAGS,
    HEAD_DIM,
    HEADS_PER_KV,
    SIMDGROUPS,
    KV_F32,
    LATENT_DIM,
    NUM_CONSTANTS
};
/* Values of ROWS: powers of two up to 1 << (NUM_ROWS - 1). */
#define NUM_ROWS 5
/* Every Apple GPU's, and what the kernels are written for. */
#define SIMD_THREADS 32

/* struct MarlinCall of shaders/common.h. */
typedef struct {
    uint32_t dispatch;
    uint32_t words[MARLIN_MAX_BINDINGS];
} marlin_call_words;

/* The argument that tells dispatch `index` which it is and how long its bindings are. */
marlin_call_words marlin_call_of(const marlin_records *records, int32_t index);
/* Threads of a threadgroup. */
int32_t marlin_launch_threads(const marlin_record *record);
/* MARLIN_OK if a pipeline of at most `most` threads, in simdgroups of `width`, can run a record. */
int marlin_check_launch(const marlin_record *record, size_t most, size_t width);
/* Pipelines of a kernel: NUM_ROWS for one with ROWS, else 1. */
int marlin_num_variants(int32_t kernel_id);
/* The function constants of a record's variant, 0 where its kernel has none. */
void marlin_constants_of(const marlin_record *record, int variant, uint32_t out[NUM_CONSTANTS]);
/* The variant that runs dispatch `index` in this replay, and its threadgroups. -1: there is nothing
 * to do, so the dispatch is skipped. */
int marlin_launch_of(const marlin_records *records, int32_t index, int64_t groups[3]);

/* What dispatch `index` of this replay takes, estimated in seconds of an M1; a replay's buffers are
 * filled by then. */
double marlin_launch_seconds(const marlin_records *records, int32_t index);
/* How many tiles a dispatch has that may also run in several, a part of its tiles each (attention);
 * 0: it may not. And what one of them takes. */
int32_t marlin_launch_tiles(const marlin_records *records, int32_t index);
double marlin_tile_seconds(const marlin_records *records, int32_t index, int32_t tile);

/* marlin.metallib beside this library. 0: there is none. */
int marlin_metallib_path(char *out, size_t size);
/* Where compiled pipelines are kept: in the user's cache, named after what they were made from: our
 * source, the system's version (its compiler), the GPU. 0: the user has no home, or
 * METAL_MARLIN_KEEP_PIPELINES is 0. */
int marlin_archive_path(const char *source, const char *system, const char *gpu, char *out,
                        size_t size);
/* Where to write an archive until it is whole: no other process's place, nor another `owner`'s
 * here. Its folders are made; whether they are there shows when it is written. */
void marlin_begin_archive(const char *path, const void *owner, char *partial, size_t size);
/* Give it its name if it was written, and drop what its folder has had for 30 days: archives of
 * older sources and systems, which nothing else would remove. */
void marlin_end_archive(const char *path, const char *partial, int written);

#endif
