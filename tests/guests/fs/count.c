// One kind of file operation after the other, 100 times each, so that the requests of each can be counted on the host: before a kind it
// prints `COUNT name operations` and waits for a line. What is named `-` is not to be counted. Run it on one vCPU, where requests go in order.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define N 100
#define EACH for (int i = 0; i < N; i++)

#define BLOCK 4096
#include "files.h"

static void next(const char *name, int operations) {
    char line[16];
    printf("COUNT %s %d\n", name, operations);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(2);
}

static void read_all(const char *name) {
    int fd = open(name, O_RDONLY);
    check(fd, name);
    check(read(fd, block, sizeof block), name);
    close(fd);
}

int main(int argc, char **argv) {
    struct stat st;
    if (argc < 2 || chdir(argv[1])) return perror("chdir"), 2;
    check(mkdir("count", 0755), "count");
    check(chdir("count"), "count");
    check(mkdir("d1", 0755), "d1");
    check(mkdir("d1/d2", 0755), "d2");
    check(mkdir("d1/d2/d3", 0755), "d3");
    // What a kernel asks for once is asked for before: the directory's attributes, and whether a close is to be told.
    write_new("first", 1);
    read_all("first");
    check(unlink("first"), "first");
    check(stat(".", &st), ".");

    next("create_write_close", N);
    EACH write_new(named(path, "f%d", i), sizeof block);
    next("-", 0);
    EACH write_new(named(path, "d1/d2/d3/f%d", i), 1);
    drop_caches();
    check(stat(".", &st), ".");
    next("stat_cold", N);
    EACH check(stat(named(path, "f%d", i), &st), path);
    next("stat_warm", N);
    EACH check(stat(named(path, "f%d", i), &st), path);
    next("-", 0);
    drop_caches();
    check(stat("d1/d2/d3", &st), ".");
    next("stat_deep_cold", N);
    EACH check(stat(named(path, "d1/d2/d3/f%d", i), &st), path);
    next("-", 0);
    EACH stat(named(path, "n%d", i), &st);
    next("stat_absent_again", N);
    EACH stat(named(path, "n%d", i), &st);
    next("-", 0);
    drop_caches();
    check(stat(".", &st), ".");
    next("open_read_close_cold", N);
    EACH read_all(named(path, "f%d", i));
    next("open_read_close_warm", N);
    EACH read_all(named(path, "f%d", i));
    next("-", 0);
    drop_caches();
    check(stat(".", &st), ".");
    next("list_long", 1);
    DIR *directory = opendir(".");
    for (struct dirent *entry; (entry = readdir(directory));) check(fstatat(dirfd(directory), entry->d_name, &st, 0), entry->d_name);
    closedir(directory);
    next("-", 0);
    next("rename", N);
    EACH {
        named(path, "f%d", i);
        check(rename(path, named(other, "g%d", i)), path);
    }
    next("-", 0);
    next("atomic_save", N);
    EACH {
        int fd = open("new~", O_CREAT | O_WRONLY | O_TRUNC, 0644);
        check(fd, "new~");
        check(write(fd, block, sizeof block), "new~");
        check(fsync(fd), "new~");
        close(fd);
        check(rename("new~", "saved"), "saved");
    }
    next("-", 0);
    int fd = open("g0", O_RDWR);
    check(fd, "g0");
    next("pwrite", N);
    EACH check(pwrite(fd, block, sizeof block, i * 4096L), "pwrite");
    next("pwrite_fsync", N);
    EACH {
        check(pwrite(fd, block, sizeof block, i * 4096L), "pwrite");
        check(fsync(fd), "fsync");
    }
    next("-", 0);
    next("append", N);
    EACH {
        check(lseek(fd, 0, SEEK_END), "lseek");
        check(write(fd, block, 200), "append");
    }
    next("-", 0);
    next("mmap_msync", 1);
    char *map = mmap(NULL, N * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(map == MAP_FAILED ? -1 : 0, "mmap");
    EACH map[i * 4096L]++;
    check(msync(map, N * 4096, MS_SYNC), "msync");
    next("-", 0);
    munmap(map, N * 4096);
    close(fd);
    EACH check(stat(named(path, "g%d", i), &st), path);
    next("chmod", N);
    EACH check(chmod(named(path, "g%d", i), 0600), path);
    next("unlink", N);
    EACH check(unlink(named(path, "g%d", i)), path);
    next("-", 0);
    return 0;
}
