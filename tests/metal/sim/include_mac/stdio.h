#include <stddef.h>
#include <stdarg.h>
int snprintf(char *text, size_t size, const char *format, ...);
