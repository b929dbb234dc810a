// What programs rely on and shared folders get wrong: one check after the other, in a directory given. `ok NAME` or `FAIL NAME: why` each.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static char why[256];

static int bad(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return 0;
}

#define TRY(expression) do { if ((long)(expression) < 0) return bad("line %d: %s: %s", __LINE__, #expression, strerror(errno)); } while (0)
#define WANT(expression) do { if (!(expression)) return bad("line %d: %s (errno %s)", __LINE__, #expression, strerrorname_np(errno)); } while (0)
#define REFUSED(expression, error) do { errno = 0; WANT((long)(expression) < 0 && errno == (error)); } while (0)

static struct stat of(const char *path) {
    struct stat st;
    memset(&st, 0, sizeof st);
    if (lstat(path, &st)) st.st_nlink = 0;
    return st;
}

static int put(const char *path, const char *content) {
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (fd < 0) return -1;
    int written = write(fd, content, strlen(content)) == (ssize_t)strlen(content) ? 0 : -1;
    return close(fd) ? -1 : written;
}

static int has(const char *path, const char *content) {
    char buffer[4096] = { 0 };
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    ssize_t len = read(fd, buffer, sizeof buffer - 1);
    close(fd);
    return len == (ssize_t)strlen(content) && !memcmp(buffer, content, len);
}

static void drop_caches(void) {
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (fd >= 0 && write(fd, "3", 1) != 1) perror("drop_caches");
    close(fd);
}

// Runs `function` as user and group `id`; whether it said so.
static int as(int id, int (*function)(void)) {
    pid_t child = fork();
    if (!child) {
        if (setgid(id) || setuid(id)) _exit(2);
        int good = function();
        if (!good) fprintf(stderr, "%s\n", why);
        _exit(!good);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// MongoDB's WiredTiger opens its files so: EPERM from the guest's kernel if the owner was lost.
static int open_noatime(void) {
    int fd = open("mongo/data", O_RDWR | O_NOATIME);
    TRY(fd);
    TRY(pwrite(fd, "x", 1, 0));
    return 1;
}

static int noatime_after_chown(void) {
    TRY(mkdir("mongo", 0700));
    TRY(put("mongo/data", "data"));
    TRY(chown("mongo/data", 999, 999));
    TRY(chown("mongo", 999, 999));
    WANT(as(999, open_noatime));
    drop_caches();
    WANT(of("mongo/data").st_uid == 999 && of("mongo/data").st_gid == 999);
    WANT(as(999, open_noatime));
    WANT(!as(1000, open_noatime));
    return 1;
}

static sigjmp_buf after_fault;
static void fault(int signal) { siglongjmp(after_fault, signal); }

static int mmap_and_truncate(void) {
    int fd = open("map", O_CREAT | O_RDWR, 0644);
    TRY(fd);
    TRY(ftruncate(fd, 3 * 4096));
    volatile char *map = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    WANT(map != MAP_FAILED);
    map[0] = 'a', map[4096] = 'b', map[8192] = 'c';
    TRY(msync((void *)map, 3 * 4096, MS_SYNC));
    char byte = 0;
    TRY(pread(fd, &byte, 1, 8192));
    WANT(byte == 'c');
    TRY(ftruncate(fd, 4096));
    signal(SIGBUS, fault);
    volatile int faulted = 1;
    if (!sigsetjmp(after_fault, 1)) {
        byte = map[4096];
        faulted = 0;
    }
    WANT(faulted);
    TRY(ftruncate(fd, 3 * 4096));
    WANT(map[0] == 'a' && map[4096] == 0 && map[8192] == 0);
    map[4096] = 'd';
    munmap((void *)map, 3 * 4096);
    close(fd);
    drop_caches();
    fd = open("map", O_RDONLY);
    TRY(pread(fd, &byte, 1, 4096));
    WANT(byte == 'd' && of("map").st_size == 3 * 4096);
    return 1;
}

static int open_file_without_name(void) {
    int fd = open("gone", O_CREAT | O_RDWR, 0600);
    TRY(fd);
    TRY(write(fd, "before", 6));
    TRY(unlink("gone"));
    char buffer[16] = { 0 };
    TRY(pwrite(fd, "after!", 6, 6));
    WANT(pread(fd, buffer, 16, 0) == 12 && !memcmp(buffer, "beforeafter!", 12));
    struct stat st;
    TRY(fstat(fd, &st));
    WANT(st.st_nlink == 0 && st.st_size == 12);
    TRY(fchmod(fd, 0640));
    TRY(ftruncate(fd, 3));
    TRY(fstat(fd, &st));
    WANT((st.st_mode & 07777) == 0640 && st.st_size == 3);
    TRY(fsync(fd));
    // A new file of the same name is another file.
    TRY(put("gone", "new"));
    WANT(pread(fd, buffer, 16, 0) == 3 && !memcmp(buffer, "bef", 3) && has("gone", "new"));
    close(fd);
    return 1;
}

static int unnamed_file(void) {
    int fd = open(".", O_TMPFILE | O_RDWR, 0600), sealed = open(".", O_TMPFILE | O_RDWR | O_EXCL, 0600);
    TRY(fd);
    TRY(sealed);
    TRY(write(fd, "unnamed", 7));
    char path[64];
    sprintf(path, "/proc/self/fd/%d", fd);
    TRY(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    WANT(has("named", "unnamed") && of("named").st_nlink == 1);
    sprintf(path, "/proc/self/fd/%d", sealed);
    REFUSED(linkat(AT_FDCWD, path, AT_FDCWD, "sealed", AT_SYMLINK_FOLLOW), ENOENT);
    return 1;
}

static int seek_data_and_hole(void) {
    TRY(put("dense", "some bytes"));
    int fd = open("dense", O_RDONLY);
    WANT(lseek(fd, 0, SEEK_DATA) == 0 && lseek(fd, 4, SEEK_DATA) == 4 && lseek(fd, 0, SEEK_HOLE) == 10);
    REFUSED(lseek(fd, 10, SEEK_DATA), ENXIO);
    REFUSED(lseek(fd, 11, SEEK_HOLE), ENXIO);
    WANT(of("dense").st_blocks > 0);
    fd = open("sparse", O_CREAT | O_RDWR, 0644);
    TRY(ftruncate(fd, 4 << 20));
    TRY(pwrite(fd, "data", 4, 2 << 20));
    TRY(fsync(fd));
    off_t data = lseek(fd, 0, SEEK_DATA), hole = lseek(fd, 2 << 20, SEEK_HOLE);
    WANT(data >= 0 && data <= 2 << 20 && hole > 2 << 20 && hole <= 4 << 20);
    close(fd);
    return 1;
}

static int hard_links(void) {
    TRY(put("one", "content"));
    TRY(link("one", "two"));
    WANT(of("one").st_nlink == 2 && of("two").st_nlink == 2 && of("one").st_ino == of("two").st_ino);
    TRY(put("two", "other"));
    WANT(has("one", "other"));
    TRY(unlink("one"));
    WANT(of("two").st_nlink == 1 && has("two", "other"));
    TRY(symlink("nowhere", "sym"));
    TRY(link("sym", "symtoo"));
    WANT(S_ISLNK(of("symtoo").st_mode) && of("symtoo").st_nlink == 2);
    return 1;
}

static int directory_sync(void) {
    int fd = open(".", O_RDONLY | O_DIRECTORY);
    TRY(fd);
    TRY(fsync(fd));
    TRY(fdatasync(fd));
    TRY(syncfs(fd));
    close(fd);
    return 1;
}

static int rename_over_an_open_file(void) {
    TRY(put("target", "old"));
    TRY(put("source", "new"));
    int fd = open("target", O_RDWR);
    TRY(rename("source", "target"));
    char buffer[8] = { 0 };
    struct stat st;
    WANT(pread(fd, buffer, 8, 0) == 3 && !memcmp(buffer, "old", 3) && has("target", "new"));
    TRY(fstat(fd, &st));
    WANT(st.st_nlink == 0 && of("source").st_nlink == 0 && of("target").st_nlink == 1);
    close(fd);
    TRY(put("a1", "1"));
    TRY(put("a2", "2"));
    REFUSED(renameat2(AT_FDCWD, "a1", AT_FDCWD, "a2", RENAME_NOREPLACE), EEXIST);
    TRY(renameat2(AT_FDCWD, "a1", AT_FDCWD, "a2", RENAME_EXCHANGE));
    WANT(has("a1", "2") && has("a2", "1"));
    return 1;
}

// git makes its objects so.
static int read_only_from_the_start(void) {
    int fd = open("object", O_CREAT | O_EXCL | O_RDWR, 0444);
    TRY(fd);
    TRY(write(fd, "blob", 4));
    TRY(close(fd));
    WANT((of("object").st_mode & 07777) == 0444 && has("object", "blob"));
    REFUSED(open("object", O_CREAT | O_EXCL | O_RDWR, 0444), EEXIST);
    TRY(mkdir("closed", 0));
    TRY(put("closed/file", "x"));
    WANT((of("closed").st_mode & 07777) == 0 && has("closed/file", "x"));
    fd = open("nothing", O_CREAT | O_EXCL | O_RDWR, 0);
    TRY(fd);
    TRY(write(fd, "y", 1));
    close(fd);
    WANT((of("nothing").st_mode & 07777) == 0 && has("nothing", "y"));
    return 1;
}

static int modes_and_owners_last(void) {
    TRY(put("owned", "x"));
    TRY(chown("owned", 1234, 4321));
    TRY(chmod("owned", 06751));
    TRY(symlink("owned", "link"));
    TRY(lchown("link", 77, 88));
    TRY(mkdir("sticky", 0755));
    TRY(chmod("sticky", 03777));
    drop_caches();
    struct stat owned = of("owned"), link = of("link");
    WANT(owned.st_uid == 1234 && owned.st_gid == 4321 && (owned.st_mode & 07777) == 06751);
    WANT(link.st_uid == 77 && link.st_gid == 88 && (link.st_mode & 07777) == 0777);
    WANT((of("sticky").st_mode & 07777) == 03777);
    // Whoever writes takes the bits away.
    TRY(chown("owned", 1000, 1000));
    TRY(chmod("owned", 06777));
    pid_t child = fork();
    if (!child) {
        if (setgid(1001) || setuid(1001)) _exit(2);
        int fd = open("owned", O_WRONLY);
        _exit(fd < 0 || write(fd, "y", 1) != 1);
    }
    int status;
    waitpid(child, &status, 0);
    WANT(status == 0 && (of("owned").st_mode & 07777) == 0777);
    return 1;
}

static int upper_and_lower_case(void) {
    TRY(mkdir("case", 0755));
    TRY(put("case/name", "lower"));
    errno = 0;
    if (open("case/NAME", O_CREAT | O_EXCL | O_WRONLY, 0644) < 0) {
        // A host that cannot tell them apart says so, and shows one.
        WANT(errno == EEXIST && of("case/NAME").st_nlink == 0);
        return 1;
    }
    WANT(has("case/name", "lower") && has("case/NAME", "") && of("case/name").st_ino != of("case/NAME").st_ino);
    return 1;
}

static int appending(void) {
    int one = open("log", O_CREAT | O_WRONLY | O_APPEND, 0644), two = open("log", O_WRONLY | O_APPEND);
    for (int i = 0; i < 3; i++) {
        TRY(write(one, "a", 1));
        TRY(write(two, "b", 1));
    }
    WANT(has("log", "ababab"));
    // pwrite on an appending descriptor appends, as open(2) says.
    TRY(pwrite(one, "c", 1, 0));
    WANT(has("log", "abababc"));
    TRY(fcntl(one, F_SETFL, 0));
    TRY(pwrite(one, "X", 1, 0));
    WANT(has("log", "Xbababc"));
    return 1;
}

static int space(void) {
    int fd = open("space", O_CREAT | O_RDWR, 0644), copy = open("copy", O_CREAT | O_RDWR, 0644);
    TRY(pwrite(fd, "0123456789", 10, 0));
    TRY(fallocate(fd, 0, 0, 8192));
    WANT(of("space").st_size == 8192);
    TRY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1 << 20));
    WANT(of("space").st_size == 8192);
    TRY(fallocate(fd, 0, 0, 10));
    WANT(of("space").st_size == 8192);
    TRY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 4));
    char buffer[11] = { 0 };
    TRY(pread(fd, buffer, 10, 0));
    WANT(!memcmp(buffer, "01\0\0\0\0" "6789", 10));
    off_t from = 6, to = 100;
    WANT(copy_file_range(fd, &from, copy, &to, 4, 0) == 4);
    WANT(pread(copy, buffer, 10, 98) == 6 && !memcmp(buffer, "\0\0" "6789", 6));
    TRY(posix_fallocate(fd, 0, 16384));
    WANT(of("space").st_size == 16384);
    return 1;
}

// `rm -rf` reads a little, deletes it, reads on.
static int deleting_while_listing(void) {
    TRY(mkdir("many", 0755));
    char path[300];
    for (int i = 0; i < 3000; i++) {
        sprintf(path, "many/a-file-with-a-longer-name-%d", i);
        TRY(put(path, ""));
    }
    DIR *directory = opendir("many");
    int seen = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] == '.') continue;
        TRY(unlinkat(dirfd(directory), entry->d_name, 0));
        seen++;
    }
    WANT(seen == 3000);
    rewinddir(directory);
    seen = 0;
    while (readdir(directory)) seen++;
    WANT(seen == 2);
    closedir(directory);
    TRY(rmdir("many"));
    return 1;
}

static int names(void) {
    char name[258];
    memset(name, 'n', 257);
    name[255] = 0;
    TRY(put(name, "long"));
    WANT(has(name, "long"));
    name[255] = 'n', name[256] = 0;
    REFUSED(open(name, O_CREAT | O_WRONLY, 0644), ENAMETOOLONG);
    TRY(put("bytes-\xff\xfe-\xc3\xa4-\n", "raw"));
    WANT(has("bytes-\xff\xfe-\xc3\xa4-\n", "raw"));
    char target[4096] = { 0 }, back[4096] = { 0 };
    memset(target, 't', 1023);
    TRY(symlink(target, "far"));
    WANT(readlink("far", back, sizeof back) == 1023 && !strcmp(target, back) && of("far").st_size == 1023);
    return 1;
}

static int times(void) {
    struct timespec set[2] = { { 1000000001, 123456789 }, { 1500000000, 987654321 } };
    TRY(put("timed", "x"));
    struct statx before, after;
    TRY(statx(AT_FDCWD, "timed", 0, STATX_BTIME, &before));
    WANT(before.stx_mask & STATX_BTIME);
    TRY(utimensat(AT_FDCWD, "timed", set, 0));
    drop_caches();
    TRY(statx(AT_FDCWD, "timed", 0, STATX_BTIME | STATX_BASIC_STATS, &after));
    WANT(after.stx_atime.tv_sec == 1000000001 && after.stx_atime.tv_nsec == 123456789);
    WANT(after.stx_mtime.tv_sec == 1500000000 && after.stx_mtime.tv_nsec == 987654321);
    WANT(before.stx_btime.tv_sec == after.stx_btime.tv_sec && before.stx_btime.tv_nsec == after.stx_btime.tv_nsec);
    return 1;
}

static int special_files(void) {
    TRY(mkfifo("fifo", 0600));
    pid_t child = fork();
    if (!child) {
        int fd = open("fifo", O_WRONLY);
        _exit(write(fd, "through", 7) != 7);
    }
    char buffer[8] = { 0 };
    int fd = open("fifo", O_RDONLY);
    WANT(read(fd, buffer, 8) == 7 && !strcmp(buffer, "through"));
    waitpid(child, NULL, 0);
    struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "socket" };
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    TRY(bind(server, (struct sockaddr *)&address, sizeof address));
    TRY(listen(server, 1));
    TRY(connect(client, (struct sockaddr *)&address, sizeof address));
    WANT(S_ISSOCK(of("socket").st_mode));
    TRY(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
    drop_caches();
    WANT(S_ISCHR(of("null").st_mode) && of("null").st_rdev == makedev(1, 3));
    fd = open("null", O_RDWR);
    WANT(fd >= 0 && write(fd, "x", 1) == 1 && read(fd, buffer, 1) == 0);
    return 1;
}

static int extended_attributes(void) {
    char buffer[256];
    TRY(put("attributed", "x"));
    TRY(setxattr("attributed", "user.one", "first", 5, XATTR_CREATE));
    REFUSED(setxattr("attributed", "user.one", "again", 5, XATTR_CREATE), EEXIST);
    REFUSED(setxattr("attributed", "user.two", "again", 5, XATTR_REPLACE), ENODATA);
    WANT(getxattr("attributed", "user.one", NULL, 0) == 5 && getxattr("attributed", "user.one", buffer, 256) == 5);
    REFUSED(getxattr("attributed", "user.one", buffer, 2), ERANGE);
    REFUSED(getxattr("attributed", "user.none", buffer, 256), ENODATA);
    TRY(chown("attributed", 55, 66));
    ssize_t len = listxattr("attributed", buffer, 256);
    WANT(len == 9 && !strcmp(buffer, "user.one"));
    TRY(removexattr("attributed", "user.one"));
    WANT(listxattr("attributed", buffer, 256) == 0);
    return 1;
}

static int locks(void) {
    TRY(put("locked", "x"));
    int fd = open("locked", O_RDWR);
    struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    TRY(fcntl(fd, F_SETLK, &whole));
    TRY(flock(fd, LOCK_EX));
    pid_t child = fork();
    if (!child) {
        int other = open("locked", O_RDWR);
        int refused = fcntl(other, F_SETLK, &whole) < 0 && errno == EAGAIN && flock(other, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
        _exit(!refused);
    }
    int status;
    waitpid(child, &status, 0);
    WANT(status == 0);
    return 1;
}

static int direct_and_large(void) {
    size_t len = (3 << 20) + 4096;
    char *out = aligned_alloc(4096, len), *in = aligned_alloc(4096, len);
    for (size_t i = 0; i < len; i++) out[i] = (char)(i * 31 + (i >> 12));
    int fd = open("large", O_CREAT | O_RDWR, 0644);
    WANT(write(fd, out, len) == (ssize_t)len);
    WANT(pread(fd, in, len, 0) == (ssize_t)len && !memcmp(in, out, len));
    close(fd);
    drop_caches();
    fd = open("large", O_RDWR | O_DIRECT);
    TRY(fd);
    memset(in, 0, len);
    WANT(pread(fd, in, len, 0) == (ssize_t)len && !memcmp(in, out, len));
    WANT(pread(fd, in, 8192, len - 4096) == 4096 && pread(fd, in, 4096, len) == 0);
    memset(out, 'd', 4096);
    WANT(pwrite(fd, out, 4096, 4096) == 4096);
    int buffered = open("large", O_RDONLY);
    WANT(pread(buffered, in, 4096, 4096) == 4096 && !memcmp(in, out, 4096));
    return 1;
}

static int errors(void) {
    TRY(put("file", "x"));
    TRY(mkdir("directory", 0755));
    TRY(put("directory/child", "x"));
    REFUSED(rmdir("directory"), ENOTEMPTY);
    REFUSED(rmdir("file"), ENOTDIR);
    REFUSED(unlink("directory"), EISDIR);
    REFUSED(open("file/below", O_RDONLY), ENOTDIR);
    REFUSED(open("absent", O_RDONLY), ENOENT);
    REFUSED(rename("directory", "directory/below"), EINVAL);
    REFUSED(rename("file", "directory"), EISDIR);
    REFUSED(rename("directory", "file"), ENOTDIR);
    REFUSED(link("directory", "hard"), EPERM);
    REFUSED(readlink("file", (char[8]){ 0 }, 8), EINVAL);
    REFUSED(open("directory", O_WRONLY), EISDIR);
    return 1;
}

#define CASE(name) { #name, name }
static const struct { const char *name; int (*function)(void); } cases[] = {
    CASE(noatime_after_chown), CASE(mmap_and_truncate), CASE(open_file_without_name), CASE(unnamed_file), CASE(seek_data_and_hole),
    CASE(hard_links), CASE(directory_sync), CASE(rename_over_an_open_file), CASE(read_only_from_the_start), CASE(modes_and_owners_last),
    CASE(upper_and_lower_case), CASE(appending), CASE(space), CASE(deleting_while_listing), CASE(names), CASE(times), CASE(special_files),
    CASE(extended_attributes), CASE(locks), CASE(direct_and_large), CASE(errors),
};

int main(int argc, char **argv) {
    umask(0);
    if (argc < 2 || chdir(argv[1])) return perror("chdir"), 2;
    int failed = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char directory[64];
        sprintf(directory, "probe-%s", cases[i].name);
        if (mkdir(directory, 0755) || chdir(directory)) {
            printf("FAIL %s: directory: %s\n", cases[i].name, strerror(errno));
            failed = 1;
            continue;
        }
        // A check of its own process: descriptors and signals end with it.
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            int good = cases[i].function();
            if (good) printf("ok %s\n", cases[i].name);
            else printf("FAIL %s: %s\n", cases[i].name, why);
            fflush(stdout);
            _exit(!good);
        }
        int status;
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status)) printf("FAIL %s: signal %d\n", cases[i].name, WTERMSIG(status));
        failed |= status != 0;
        if (chdir("..")) return 2;
    }
    printf("probe done\n");
    return failed;
}
