/* buffers.c: error texts, and buffers by id, whose memory is anonymous, a file's or the caller's.
 * Knows no device: it calls attach and detach where one comes and goes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buffers.h"
#include "common/faults.h"

/* Below this a huge page would be mostly empty. */
#define HUGE_PAGE_BYTES (4 << 20)

static _Thread_local char error_text[512];

int marlin_fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
    return code;
}

const char *marlin_last_error(void) { return error_text; }

int marlin_abi_version(void) { return MARLIN_ABI_VERSION; }

/* ---- ids and holds ---- */

int marlin_buffers_open(marlin_buffers *buffers)
{
    buffers->count = 1;
    buffers->slots = calloc(1, sizeof *buffers->slots);
    return buffers->slots ? MARLIN_OK : MARLIN_ENOMEM;
}

static void unmap(marlin_buffer *buffer)
{
    if (buffer->from_file) marlin_faults_forget(buffer->mapping);
    if (buffer->mapping) munmap(buffer->mapping, buffer->mapping_bytes);
}

static void free_buffer(marlin_device *device, marlin_buffer *buffer)
{
    marlin_buffers *buffers = marlin_device_buffers(device);
    marlin_device_detach(device, buffer);
    unmap(buffer);
    if (buffer->from_file)
        buffers->mapped_bytes -= buffer->bytes;
    else if (buffer->mapping)
        buffers->allocated_bytes -= buffer->bytes;
    memset(buffer, 0, sizeof *buffer);
}

void marlin_buffers_close(marlin_device *device)
{
    marlin_buffers *buffers = marlin_device_buffers(device);
    for (int32_t i = 1; i < buffers->count; i++)
        if (buffers->slots[i].holds > 0) free_buffer(device, &buffers->slots[i]);
    free(buffers->slots);
    buffers->slots = NULL;
    buffers->count = 0;
}

marlin_buffer *marlin_buffer_get(marlin_device *device, int id)
{
    if (!device || id < 1 || id >= marlin_device_buffers(device)->count) return NULL;
    marlin_buffer *buffer = &marlin_device_buffers(device)->slots[id];
    return buffer->holds > 0 && !buffer->released ? buffer : NULL;
}

void marlin_buffer_unhold(marlin_device *device, int id)
{
    marlin_buffer *buffer = &marlin_device_buffers(device)->slots[id];
    if (--buffer->holds == 0) free_buffer(device, buffer);
}

static int add_buffer(marlin_device *device, marlin_buffer buffer)
{
    marlin_buffers *buffers = marlin_device_buffers(device);
    int32_t id = 1;
    while (id < buffers->count && buffers->slots[id].holds > 0) id++;
    if (id == buffers->count) {
        marlin_buffer *grown = realloc(buffers->slots, (size_t)(id + 1) * sizeof *grown);
        if (!grown) {
            unmap(&buffer);
            return marlin_fail(MARLIN_ENOMEM, "no memory for a buffer's record");
        }
        memset(&grown[id], 0, sizeof *grown);
        buffers->slots = grown;
        buffers->count = id + 1;
    }
    int code = marlin_device_attach(device, &buffer);
    if (code != MARLIN_OK) {
        unmap(&buffer);
        return code;
    }
    buffer.holds = 1;
    buffers->slots[id] = buffer;
    if (buffer.from_file)
        buffers->mapped_bytes += buffer.bytes;
    else if (buffer.mapping)
        buffers->allocated_bytes += buffer.bytes;
    return id;
}

/* ---- where the memory comes from ---- */

size_t marlin_whole_pages(int64_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return ((size_t)bytes + page - 1) / page * page;
}

int marlin_buffer_create(marlin_device *device, int64_t bytes)
{
    if (!device || bytes < 1)
        return marlin_fail(MARLIN_EINVAL, "a buffer of %lld bytes", (long long)bytes);
    size_t mapping_bytes = marlin_whole_pages(bytes);
    void *memory =
        mmap(NULL, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return marlin_fail(MARLIN_ENOMEM, "no memory for a buffer of %lld bytes", (long long)bytes);
#if defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_PAGE_BYTES) madvise(memory, mapping_bytes, MADV_HUGEPAGE);
#endif
    return add_buffer(device, (marlin_buffer){.memory = memory,
                                              .bytes = bytes,
                                              .mapping = memory,
                                              .mapping_bytes = mapping_bytes,
                                              .writable = 1});
}

int marlin_buffer_map(marlin_device *device, const char *path, int64_t offset, int64_t bytes)
{
    if (!device || !path || offset < 0 || bytes < 1)
        return marlin_fail(MARLIN_EINVAL, "cannot map %lld bytes at %lld", (long long)bytes,
                           (long long)offset);
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not wait */
    if (file < 0) return marlin_fail(MARLIN_EIO, "%.200s: %s", path, strerror(errno));
    struct stat status;
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || offset > status.st_size ||
        bytes > status.st_size - offset) {
        close(file);
        return marlin_fail(MARLIN_EIO, "%.200s does not hold %lld bytes at %lld", path,
                           (long long)bytes, (long long)offset);
    }
    int64_t lead = offset % sysconf(_SC_PAGESIZE);
    size_t mapping_bytes = marlin_whole_pages(bytes + lead);
    uint8_t *mapping = mmap(NULL, mapping_bytes, PROT_READ, MAP_SHARED, file, offset - lead);
    close(file);
    if (mapping == MAP_FAILED)
        return marlin_fail(MARLIN_EIO, "%.200s: mmap: %s", path, strerror(errno));
    if (marlin_faults_watch(mapping, mapping_bytes, path) != 0) {
        munmap(mapping, mapping_bytes);
        return marlin_fail(MARLIN_ENOMEM, "no memory to map %.200s", path);
    }
    return add_buffer(device, (marlin_buffer){.memory = mapping + lead,
                                              .bytes = bytes,
                                              .mapping = mapping,
                                              .mapping_bytes = mapping_bytes,
                                              .from_file = 1});
}

int marlin_buffer_wrap(marlin_device *device, void *memory, int64_t bytes)
{
    if (!device || !memory || bytes < 1) return marlin_fail(MARLIN_EINVAL, "nothing to wrap");
    return add_buffer(device, (marlin_buffer){.memory = memory, .bytes = bytes, .writable = 1});
}

/* ---- the caller's hold ---- */

void *marlin_buffer_contents(marlin_device *device, int id)
{
    marlin_buffer *buffer = marlin_buffer_get(device, id);
    if (!buffer) {
        marlin_fail(MARLIN_EINVAL, "buffer %d does not exist", id);
        return NULL;
    }
    return buffer->memory;
}

int marlin_buffer_release(marlin_device *device, int id)
{
    marlin_buffer *buffer = marlin_buffer_get(device, id);
    if (!buffer) return marlin_fail(MARLIN_EINVAL, "buffer %d does not exist", id);
    buffer->released = 1;
    marlin_buffer_unhold(device, id);
    return MARLIN_OK;
}
