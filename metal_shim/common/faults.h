/* faults.h: what happens when a page of a mapped file cannot be read. */
#ifndef MARLIN_FAULTS_H
#define MARLIN_FAULTS_H

#include <stddef.h>

/* From now on a fault in [start, start + bytes) ends the process with a sentence that names the
 * file. Returns 0, or -1 without memory to remember it. */
int marlin_faults_watch(const void *start, size_t bytes, const char *path);
/* Before the range is unmapped. */
void marlin_faults_forget(const void *start);

#endif
