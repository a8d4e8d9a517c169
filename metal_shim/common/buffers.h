/* buffers.h: a device's buffers by id: their memory, who holds them, how much there is of it. The
 * same for every device; what a device binds of a buffer is its own business (attach, detach). */
#ifndef MARLIN_BUFFERS_H
#define MARLIN_BUFFERS_H

#include <stddef.h>
#include <stdint.h>

#include "marlin.h"

typedef struct {
    uint8_t *memory;
    int64_t bytes;
    void *mapping; /* what to unmap, whole pages; NULL for wrapped memory */
    size_t mapping_bytes;
    void *object;          /* the device's own, from attach to detach */
    int64_t object_offset; /* where in it `memory` begins */
    int32_t holds;         /* the caller's and each program's; 0: free slot */
    int8_t writable;
    int8_t released; /* the caller gave it up: the id is no longer valid for new programs */
    int8_t from_file;
} marlin_buffer;

typedef struct {
    marlin_buffer *slots; /* index 0 unused */
    int32_t count;
    int64_t allocated_bytes;
    int64_t mapped_bytes;
} marlin_buffers;

/* Each device's own. attach: make ready to bind what the buffer describes, or a negative code. */
marlin_buffers *marlin_device_buffers(marlin_device *device);
int marlin_device_attach(marlin_device *device, marlin_buffer *buffer);
void marlin_device_detach(marlin_device *device, marlin_buffer *buffer);

int marlin_buffers_open(marlin_buffers *buffers);
/* Free every buffer that is still held. */
void marlin_buffers_close(marlin_device *device);
/* NULL for an id that the caller may not use. */
marlin_buffer *marlin_buffer_get(marlin_device *device, int id);
void marlin_buffer_unhold(marlin_device *device, int id);
/* `bytes` rounded up to whole pages. */
size_t marlin_whole_pages(int64_t bytes);

/* Keep a text for marlin_last_error(); returns the code. */
int marlin_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
