// How long file operations take in a directory given, by the guest's clock: `BENCH name seconds operations` a line. Which: words of the
// command line after it; see the table at the end.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (1 << 20)
#include "files.h"

static struct stat st;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void report(const char *name, double start, long operations) {
    printf("BENCH %s %.6f %ld\n", name, now() - start, operations);
    fflush(stdout);
}

static long read_all(const char *name) {
    int fd = open(name, O_RDONLY);
    check(fd, name);
    long all = 0;
    for (ssize_t len; (len = read(fd, block, sizeof block)) > 0;) all += len;
    close(fd);
    return all;
}

#define LOOP(n) for (int i = 0; i < (n); i++)

static void round_trip(void) {
    struct statfs fs;
    LOOP(200) statfs(".", &fs);
    double start = now();
    LOOP(5000) check(statfs(".", &fs), "statfs");
    report("statfs", start, 5000);
    start = now();
    LOOP(2) if (!fork()) {
        for (int k = 0; k < 2500; k++) statfs(".", &fs);
        _exit(0);
    }
    while (wait(NULL) > 0) {}
    report("statfs_two", start, 5000);
}

static void metadata(void) {
    const int n = 1000;
    check(mkdir("meta", 0755), "meta");
    check(chdir("meta"), "meta");
    double start = now();
    LOOP(n) write_new(named(path, "f%d", i), 4096);
    report("create", start, n);
    sync();
    drop_caches();
    start = now();
    LOOP(n) check(stat(named(path, "f%d", i), &st), path);
    report("stat_cold", start, n);
    start = now();
    LOOP(n) check(stat(named(path, "f%d", i), &st), path);
    report("stat_warm", start, n);
    sleep(2);
    start = now();
    LOOP(n) check(stat(named(path, "f%d", i), &st), path);
    report("stat_later", start, n);
    start = now();
    for (int k = 0; k < 2; k++) LOOP(n) stat(named(path, "none%d", i), &st);
    report("absent", start, 2 * n);
    sync();
    drop_caches();
    start = now();
    LOOP(n) read_all(named(path, "f%d", i));
    report("read_cold", start, n);
    start = now();
    LOOP(n) read_all(named(path, "f%d", i));
    report("read_warm", start, n);
    sync();
    drop_caches();
    start = now();
    DIR *directory = opendir(".");
    int entries = 0;
    for (struct dirent *entry; (entry = readdir(directory)); entries++) fstatat(dirfd(directory), entry->d_name, &st, 0);
    closedir(directory);
    report("list_long", start, entries);
    start = now();
    LOOP(n) {
        named(path, "f%d", i);
        check(rename(path, named(other, "g%d", i)), path);
    }
    report("rename", start, n);
    start = now();
    LOOP(n) check(unlink(named(path, "g%d", i)), path);
    report("unlink", start, n);
    check(chdir(".."), "..");
    check(rmdir("meta"), "meta");
}

static void data(void) {
    const int mib = 64;
    int fd = open("data", O_CREAT | O_RDWR | O_TRUNC, 0644);
    check(fd, "data");
    memset(block, 'y', sizeof block);
    double start = now();
    LOOP(mib) check(write(fd, block, sizeof block), "write");
    check(fsync(fd), "fsync");
    report("write_1m", start, mib);
    sync();
    drop_caches();
    start = now();
    check(lseek(fd, 0, SEEK_SET), "lseek");
    LOOP(mib) check(read(fd, block, sizeof block), "read");
    report("read_1m", start, mib);
    unsigned random = 1;
    start = now();
    LOOP(2000) check(pwrite(fd, block, 4096, (random = random * 1103515245 + 12345) / 65536 % (mib * 256) * 4096L), "pwrite");
    report("pwrite_4k", start, 2000);
    start = now();
    LOOP(200) {
        check(pwrite(fd, block, 4096, i * 4096L), "pwrite");
        check(fsync(fd), "fsync");
    }
    report("pwrite_fsync", start, 200);
    close(fd);
    sync();
    drop_caches();
    // virtiofsd takes an arm64 guest's O_DIRECT for the O_DIRECTORY that it is on x86.
    if ((fd = open("data", O_RDONLY | O_DIRECT)) >= 0) {
        void *aligned = aligned_alloc(4096, 4096);
        start = now();
        LOOP(2000) check(pread(fd, aligned, 4096, (random = random * 1103515245 + 12345) / 65536 % (mib * 256) * 4096L), "pread");
        report("pread_4k_direct", start, 2000);
        close(fd);
    }
    fd = open("data", O_RDONLY);
    const volatile char *map = mmap(NULL, (size_t)mib << 20, PROT_READ, MAP_SHARED, fd, 0);
    check(map == MAP_FAILED ? -1 : 0, "mmap");
    start = now();
    LOOP(2000) (void)map[(random = random * 1103515245 + 12345) / 65536 % (mib * 256) * 4096L];
    report("mmap_random", start, 2000);
    close(fd);
    check(unlink("data"), "data");
}

// What `npm install` leaves: many small files in many directories. Sizes are the same every time.
static void make_tree(int files) {
    const int per_directory = 15;
    unsigned random = 7;
    check(mkdir("tree", 0755), "tree");
    LOOP(files) {
        int directory = i / per_directory;
        if (i % per_directory == 0) {
            if (directory % 40 == 0) check(mkdir(named(path, "tree/p%d", directory / 40), 0755), path);
            sprintf(path, "tree/p%d/m%d", directory / 40, directory);
            check(mkdir(path, 0755), path);
        }
        random = random * 1103515245 + 12345;
        sprintf(path, "tree/p%d/m%d/file-%d.js", directory / 40, directory, i);
        write_new(path, 200 + random / 65536 % 6000);
    }
}

int main(int argc, char **argv) {
    if (argc < 3 || chdir(argv[1])) return perror("chdir"), 2;
    umask(0);
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "round-trip")) round_trip();
        else if (!strcmp(argv[i], "metadata")) metadata();
        else if (!strcmp(argv[i], "data")) data();
        else if (!strncmp(argv[i], "make-tree=", 10)) make_tree(atoi(argv[i] + 10));
        else return fprintf(stderr, "%s?\n", argv[i]), 2;
    }
    return 0;
}
