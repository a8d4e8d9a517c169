#include <stddef.h>
void *calloc(size_t count, size_t size);
void *realloc(void *memory, size_t size);
void free(void *memory);
