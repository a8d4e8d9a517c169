/* marlin.h: the whole contract between Python and native code.
 *
 * A device owns buffers; a program is a checked list of kernel dispatches over them; submit replays
 * it, wait ends the replay. Callers pass ids, not pointers: every id, range and parameter is
 * checked when a program is created, and what changes from step to step (vars) when it is
 * submitted, so a caller's bug is an error code and never a crash. What a buffer holds (token ids,
 * block tables) is checked by the kernels that index with it.
 *
 * Threads: one thread at a time per device. marlin_last_error() is per thread.
 * Every int result is MARLIN_OK or a negative code, and then marlin_last_error() has one sentence.
 */
#ifndef MARLIN_H
#define MARLIN_H

#include <stdint.h>

#define MARLIN_ABI_VERSION 10
#define MARLIN_MAX_BINDINGS 12
#define MARLIN_MAX_PARAM_BYTES 80
#define MARLIN_MAX_VARS 8

enum {
    MARLIN_OK = 0,
    MARLIN_EINVAL = -1,  /* an argument, record or range that cannot be used */
    MARLIN_ENOMEM = -2,  /* memory could not be had */
    MARLIN_EBUSY = -3,   /* a replay is in flight */
    MARLIN_EDEVICE = -4, /* a replay failed: the text names the kernel */
    MARLIN_EIO = -5,     /* a file could not be opened or mapped */
    MARLIN_ENODEV = -6   /* this machine has no such device */
};

enum { MARLIN_READ = 1, MARLIN_WRITE = 2 };

typedef struct marlin_device marlin_device;
typedef struct marlin_program marlin_program;

typedef struct {
    int32_t num_threads; /* 0: as many as its affinity allows */
    char isa[16];        /* CPU: "avx512", "avx2", "i8mm", "neon", "scalar"; "": the best here */
} marlin_device_options;

typedef struct {
    char name[64];
    char isa[16];
    int32_t num_threads;
    int32_t page_bytes;
    int64_t memory_bytes;     /* what the device may use in all */
    int64_t max_buffer_bytes; /* what one buffer may have */
    int64_t allocated_bytes;  /* buffers created (not mapped or wrapped) */
    int64_t mapped_bytes;     /* files mapped */
    char note[256];           /* what is not as it should be, though it works; "": nothing */
} marlin_device_info;

typedef struct {
    int32_t buffer; /* id, or 0: not bound */
    int32_t access; /* MARLIN_READ | MARLIN_WRITE: at least what the kernel does */
    int64_t offset; /* bytes; the address is a multiple of the elements' size */
    int64_t bytes;
} marlin_binding;

/* How much work it is follows from the parameters and a step's vars; where that is nothing, the
 * dispatch is skipped. */
typedef struct {
    int32_t kernel;  /* marlin_kernel_find() */
    int32_t barrier; /* 1: all earlier dispatches are done first */
    int32_t num_bindings;
    int32_t param_bytes;
    uint8_t params[MARLIN_MAX_PARAM_BYTES];
    marlin_binding bindings[MARLIN_MAX_BINDINGS];
} marlin_dispatch;

#define MARLIN_API __attribute__((visibility("default")))

MARLIN_API int marlin_abi_version(void);
MARLIN_API const char *marlin_last_error(void);

/* Open a device; the caller closes it after its programs are destroyed. Closing frees its buffers.
 */
MARLIN_API int marlin_device_open(const marlin_device_options *options, marlin_device **out);
MARLIN_API void marlin_device_close(marlin_device *device);
MARLIN_API int marlin_device_describe(marlin_device *device, marlin_device_info *out);
/* Ask the system to leave all buffers where the device can use them at once. It may forget after a
 * second without use: call this again and again while the next step should start fast. Nothing
 * where memory needs no such request. */
MARLIN_API int marlin_device_keep_resident(marlin_device *device);

/* Each returns a buffer id > 0 or a negative code.
 * create: zeroed, page-aligned. map: [offset, offset + bytes) of a file, read only, any offset; the
 * file must not shrink while it is mapped. wrap: the caller's memory, which must outlive the
 * buffer. */
MARLIN_API int marlin_buffer_create(marlin_device *device, int64_t bytes);
MARLIN_API int marlin_buffer_map(marlin_device *device, const char *path, int64_t offset,
                                 int64_t bytes);
MARLIN_API int marlin_buffer_wrap(marlin_device *device, void *memory, int64_t bytes);
/* Host address of a buffer's first byte, NULL for a bad id. Do not touch what a replay in flight
 * writes. */
MARLIN_API void *marlin_buffer_contents(marlin_device *device, int buffer);
/* Give up the caller's hold; memory goes when no program uses the buffer either. */
MARLIN_API int marlin_buffer_release(marlin_device *device, int buffer);

/* Kernel id of a name, or MARLIN_EINVAL. */
MARLIN_API int marlin_kernel_find(const char *name);

/* Check and keep a copy of `count` records. */
MARLIN_API int marlin_program_create(marlin_device *device, const marlin_dispatch *records,
                                     int32_t count, marlin_program **out);
MARLIN_API void marlin_program_destroy(marlin_program *program);

/* Start one replay of dispatches [first, first + count) and return at once; a GPU's long replay
 * (metal_replay.m) returns when the rest of it is in flight.
 *
 * vars: num_vars values (<= MARLIN_MAX_VARS), copied; they count rows and tiles, and each
 * is checked against what the bound buffers can hold. One replay a device may be in flight. The
 * first dispatch of a replay needs no barrier flag.
 *
 * Returns MARLIN_OK; MARLIN_EINVAL for a bad range or var; MARLIN_EBUSY if a replay is running. */
MARLIN_API int marlin_program_submit(marlin_program *program, int32_t first, int32_t count,
                                     const int32_t *vars, int32_t num_vars);
/* Wait for the replay to end. MARLIN_EDEVICE if a kernel met an index that its buffers do not hold.
 */
MARLIN_API int marlin_program_wait(marlin_program *program);

/* ---- which tokens may come next: no device is involved, and any thread may call ---- */

/* A vocabulary's tokens by their bytes: token t has [starts[t], starts[t + 1]) of `bytes`, nothing
 * where no grammar may take it; `ends` are those that end a sequence. size + 1 starts. */
typedef struct marlin_vocabulary marlin_vocabulary;
MARLIN_API int marlin_vocabulary_create(const uint8_t *bytes, const int64_t *starts, int32_t size,
                                        const int32_t *ends, int32_t num_ends,
                                        marlin_vocabulary **out);
/* After its grammars. */
MARLIN_API void marlin_vocabulary_destroy(marlin_vocabulary *vocabulary);

/* An edge of an automaton over bytes whose edges may be automata: a rule is a state to begin in,
 * and ends at a MARLIN_RETURN. */
typedef struct {
    int32_t source;
    int32_t kind;
    int32_t a, b, c;
    int32_t target;
} marlin_edge;

enum {
    MARLIN_BYTE,   /* one byte of [a, b] */
    MARLIN_EMPTY,  /* nothing */
    MARLIN_REPEAT, /* rule a, b to c times; c < 0: without end */
    MARLIN_TEXT,   /* the same, of a rule that takes each character of a JSON string that needs no
                      escape: tokens of such alone are looked at once a vocabulary */
    MARLIN_BOTH,   /* what rule a and rule b take, or with c: what a takes and b does not; never
                      nothing */
    MARLIN_RETURN  /* the end of the rule */
};

/* States 0 to num_states - 1, the first rule is 0. MARLIN_EINVAL: an edge is wrong, or nothing at
 * all is taken. */
typedef struct marlin_grammar marlin_grammar;
MARLIN_API int marlin_grammar_create(const marlin_vocabulary *vocabulary, const marlin_edge *edges,
                                     int32_t num_edges, int32_t num_states, marlin_grammar **out);
MARLIN_API void marlin_grammar_destroy(marlin_grammar *grammar);
/* Positions in a text are numbers: 1 before its first byte, 0 where no text leads. They stay what
 * they are until a reset. One thread at a time per grammar.
 *
 * All give MARLIN_ENOMEM when the grammar remembers as much as it may: reset it, come back to where
 * the text was, ask again. MARLIN_EINVAL: a bad position, or one that is too many places at once.
 *
 * advance: the position after `count` bytes more. */
MARLIN_API int32_t marlin_grammar_advance(marlin_grammar *grammar, int32_t position,
                                          const uint8_t *bytes, int64_t count);
/* 1 if the text may end here, else 0. */
MARLIN_API int marlin_grammar_accepts(marlin_grammar *grammar, int32_t position);
/* Bit t % 32 of out[t / 32] for each token t that may come next. known: only if that was asked
 * before. 1: `out` is filled; 0: it is not known. */
MARLIN_API int marlin_grammar_mask(marlin_grammar *grammar, int32_t position, int32_t known,
                                   uint32_t *out);
MARLIN_API void marlin_grammar_reset(marlin_grammar *grammar);

#endif
