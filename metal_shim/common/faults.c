/* faults.c: pages of a mapped file that are gone. Truncating a file in place raises SIGBUS in
 * whichever thread reads such a page next; a process that died of it would not say why. Owns the
 * ranges that files are mapped at, and the handler; a fault anywhere else is left to the handler
 * that was there before. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/faults.h"

/* The last part of a path; no file system has longer names. */
#define NAME_BYTES 256

/* Never freed, since the handler may be walking: a range that is forgotten is used again. */
typedef struct range {
    struct range *next;
    uintptr_t start; /* 0: free */
    size_t bytes;
    char name[NAME_BYTES];
} range;

/* These and each start are read and written as wholes, for the handler takes no lock. */
static range *ranges;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of those who change ranges */
static pthread_once_t installed = PTHREAD_ONCE_INIT;
static struct sigaction before;

static range *first(void) { return __atomic_load_n(&ranges, __ATOMIC_ACQUIRE); }

static uintptr_t begin_of(const range *each)
{
    return __atomic_load_n(&each->start, __ATOMIC_ACQUIRE);
}

static void say(const char *text)
{
    /* Nothing can be done about a stream that takes no more. */
    ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

/* Only what a signal handler may call. */
static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    uintptr_t address = (uintptr_t)info->si_addr;
    for (range *each = first(); each; each = each->next) {
        uintptr_t start = begin_of(each);
        if (start && address >= start && address - start < each->bytes) {
            say("metal-marlin: ");
            say(each->name);
            say(" cannot be read any more: it was truncated while it was in use\n");
            _exit(1);
        }
    }
    sigaction(signal, &before, NULL); /* returning raises it once more */
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

static range *free_range(void)
{
    for (range *each = first(); each; each = each->next)
        if (!begin_of(each)) return each;
    range *made = calloc(1, sizeof *made);
    if (!made) return NULL;
    made->next = first();
    __atomic_store_n(&ranges, made, __ATOMIC_RELEASE);
    return made;
}

int marlin_faults_watch(const void *start, size_t bytes, const char *path)
{
    pthread_once(&installed, install);
    const char *slash = strrchr(path, '/');
    pthread_mutex_lock(&lock);
    range *found = free_range();
    if (found) {
        strncpy(found->name, slash ? slash + 1 : path, NAME_BYTES - 1);
        found->bytes = bytes;
        __atomic_store_n(&found->start, (uintptr_t)start, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return found ? 0 : -1;
}

void marlin_faults_forget(const void *start)
{
    pthread_mutex_lock(&lock);
    for (range *each = first(); each; each = each->next) {
        if (begin_of(each) == (uintptr_t)start) {
            __atomic_store_n(&each->start, (uintptr_t)0, __ATOMIC_RELEASE);
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}
