/* metal_files.c: where the Metal device's files lie: the compiled shaders that came with it, and
 * the pipelines that earlier runs kept. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "metal/metal.h"

/* Longer than anyone tries an older version beside a newer one. An archive that goes too early
 * costs one compilation. */
#define ARCHIVE_SECONDS (30 * 24 * 3600)

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
    const char *wanted = getenv("METAL_MARLIN_KEEP_PIPELINES");
    if (!home || home[0] != '/' || (wanted && strcmp(wanted, "0") == 0)) return 0;
    uint64_t hash = hash_of(hash_of(hash_of(0xcbf29ce484222325, source), system), gpu);
    int length = snprintf(out, size, "%s/Library/Caches/metal-marlin/%016llx.metallib", home,
                          (unsigned long long)hash);
    return length < (int)size;
}

static void make_folders(const char *path)
{
    char folder[1024];
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
        mkdir(folder, 0755);
    }
}

void marlin_begin_archive(const char *path, const void *owner, char *partial, size_t size)
{
    make_folders(path);
    snprintf(partial, size, "%s.%d.%p", path, getpid(), owner);
}

/* Whole ones, and parts that a process left when it was killed; not `kept`. */
static void drop_old_archives(const char *folder, const char *kept)
{
    DIR *listing = opendir(folder);
    if (!listing) return;
    time_t oldest = time(NULL) - ARCHIVE_SECONDS;
    for (struct dirent *entry; (entry = readdir(listing));) {
        char path[1024 + 256];
        struct stat status;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (strstr(entry->d_name, ".metallib") && strcmp(path, kept) != 0 &&
            stat(path, &status) == 0 && status.st_mtime < oldest)
            unlink(path);
    }
    closedir(listing);
}

void marlin_end_archive(const char *path, const char *partial, int written)
{
    char folder[1024];
    if (!written || rename(partial, path) != 0) {
        unlink(partial);
        return;
    }
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
    drop_old_archives(folder, path);
}
