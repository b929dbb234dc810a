// What the programs here do with files. `BLOCK` is how many bytes `block` has.
static char path[256], other[256], block[BLOCK];

static void check(long result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static void drop_caches(void) {
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    check(fd, "drop_caches");
    check(write(fd, "3", 1), "drop_caches");
    close(fd);
}

static const char *named(char *into, const char *format, int i) {
    snprintf(into, sizeof path, format, i);
    return into;
}

static void write_new(const char *name, size_t len) {
    int fd = open(name, O_CREAT | O_WRONLY | O_TRUNC, 0644);
    check(fd, name);
    check(write(fd, block, len), name);
    check(close(fd), name);
}
