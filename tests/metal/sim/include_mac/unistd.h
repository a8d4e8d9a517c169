#define R_OK 4
#define _SC_PAGESIZE 29
long sysconf(int name);
int access(const char *path, int mode);
int unlink(const char *path);
int getpid(void);
int rename(const char *from, const char *to);
