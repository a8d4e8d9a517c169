/* metal_files.c: where the Metal device's files lie: the compiled shaders that came with it, and
 * the pipelines that earlier runs kept. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "metal.h"

int marlin_metallib_path(char *out, size_t size)
{
    Dl_info info;
    if (!dladdr((void *)&marlin_metallib_path, &info) || !info.dli_fname) return 0;
    const char *slash = strrchr(info.dli_fname, '/');
    int folder = slash ? (int)(slash + 1 - info.dli_fname) : 0;
    int length = snprintf(out, size, "%.*smarlin.metallib", folder, info.dli_fname);
    return length < (int)size && access(out, R_OK) == 0;
}

/* FNV-1a, 64 bits: names a file, guards nothing. */
static uint64_t hash_of(uint64_t hash, const char *text)
{
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3;
    return hash;
}

int marlin_archive_path(const char *source, const char *system, const char *gpu, char *out,
                        size_t size)
{
    const char *home = getenv("HOME");
    if (!home || home[0] != '/') return 0;
    uint64_t hash = hash_of(hash_of(hash_of(0xcbf29ce484222325, source), system), gpu);
    int length = snprintf(out, size, "%s/Library/Caches/metal-marlin/%016llx.metallib", home,
                          (unsigned long long)hash);
    return length < (int)size;
}

void marlin_make_folders(const char *path)
{
    char folder[1024];
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
        mkdir(folder, 0755);
    }
}
