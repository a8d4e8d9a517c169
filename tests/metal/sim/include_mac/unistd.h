#define R_OK 4
#define _SC_PAGESIZE 29
long sysconf(int name);
int access(const char *path, int mode);
