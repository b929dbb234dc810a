/*
 * Code that changes while it runs, in every way that a guest program or the guest's kernel changes it. Each function returns if the new code
 * ran when it had to, and ends the program with a line that says which did not otherwise.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef int function(int);

enum { PAGE = 4096, HOT = 300 };

#define REQUIRE(condition, ...) \
    do { \
        if (!(condition)) { \
            printf("%s: ", __func__), printf(__VA_ARGS__), printf(" (%s)\n", strerror(errno)); \
            exit(1); \
        } \
    } while (0)

#define RET 0xd65f03c0u
#define NOP 0xd503201fu
#define BRK 0xd4200000u

/* MOV W0, #value */
static uint32_t mov(int value)
{
    return 0x52800000u | (uint32_t)value << 5;
}

/* ADD W0, W0, #value */
static uint32_t add(int value)
{
    return 0x11000000u | (uint32_t)value << 10;
}

static void publish(void *code, size_t bytes)
{
    __builtin___clear_cache((char *)code, (char *)code + bytes);
}

static uint32_t *pages(int count, int protection)
{
    uint32_t *code = mmap(0, count * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(code != MAP_FAILED, "no memory");
    return code;
}

static function *entry(uint32_t *code)
{
    return (function *)(uintptr_t)code;
}

/* Runs `code` often enough to be translated. */
static void warm(uint32_t *code, int expected)
{
    for (int i = 0; i < HOT; i++)
        REQUIRE(entry(code)(0) == expected, "before the change: %d, not %d", entry(code)(0), expected);
}

/* A JIT compiler that writes where it executes. */
static void rewritten(void)
{
    uint32_t *code = pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (int value = 0; value < 2000; value++) {
        code[0] = mov(value), code[1] = RET;
        publish(code, 8);
        REQUIRE(entry(code)(0) == value, "version %d returned %d", value, entry(code)(0));
    }
    munmap(code, PAGE);
}

/* One instruction in the middle of much hot code, and across two pages. */
static void patched(void)
{
    uint32_t *code = pages(2, PROT_READ | PROT_WRITE | PROT_EXEC);
    enum { FROM = PAGE / 4 - 100, LEN = 200 };
    code[FROM] = mov(0);
    for (int i = 1; i < LEN; i++)
        code[FROM + i] = add(1);
    code[FROM + LEN] = RET;
    publish(code, 2 * PAGE);
    warm(code + FROM, LEN - 1);
    for (int i = 1; i < LEN; i += 7) {
        code[FROM + i] = add(1001);
        publish(code + FROM + i, 4);
        REQUIRE(entry(code + FROM)(0) == LEN - 1 + 1000, "patch %d: %d", i, entry(code + FROM)(0));
        code[FROM + i] = add(1);
        publish(code + FROM + i, 4);
        REQUIRE(entry(code + FROM)(0) == LEN - 1, "patch %d taken back: %d", i, entry(code + FROM)(0));
    }
    munmap(code, 2 * PAGE);
}

/* A careful JIT compiler: never writable and executable at once. */
static void protected(void)
{
    uint32_t *code = pages(1, PROT_READ | PROT_WRITE);
    for (int value = 0; value < 300; value++) {
        REQUIRE(!mprotect(code, PAGE, PROT_READ | PROT_WRITE), "mprotect");
        code[0] = mov(value), code[1] = RET;
        REQUIRE(!mprotect(code, PAGE, PROT_READ | PROT_EXEC), "mprotect");
        publish(code, 8);
        REQUIRE(entry(code)(0) == value, "version %d returned %d", value, entry(code)(0));
    }
    munmap(code, PAGE);
}

/* Other memory at the same address, without a word about caches: the kernel sees to it. */
static void remapped(void)
{
    char name[] = "/tmp/code-XXXXXX";
    int file = mkstemp(name);
    REQUIRE(file >= 0 && !ftruncate(file, 8 * PAGE), "no file");
    for (int page = 0; page < 8; page++) {
        uint32_t code[] = { mov(100 + page), RET };
        REQUIRE(pwrite(file, code, sizeof code, page * PAGE) == sizeof code, "write");
    }
    uint32_t *at = pages(1, PROT_READ);
    for (int turn = 0; turn < 200; turn++) {
        void *now = mmap(at, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, turn % 8 * PAGE);
        REQUIRE(now == at, "mmap");
        warm(at, 100 + turn % 8);
    }
    munmap(at, PAGE);
    close(file);
    unlink(name);
}

/* Address spaces that have other code at the same address, by turns. */
static void forked(void)
{
    uint32_t *code = pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    code[0] = mov(1), code[1] = RET;
    publish(code, 8);
    warm(code, 1);
    pid_t children[8];
    for (int child = 0; child < 8; child++) {
        children[child] = fork();
        REQUIRE(children[child] >= 0, "fork");
        if (children[child])
            continue;
        code[0] = mov(10 + child);
        publish(code, 8);
        for (int turn = 0; turn < 200; turn++) {
            warm(code, 10 + child);
            sched_yield();
        }
        _exit(0);
    }
    for (int turn = 0; turn < 200; turn++) {
        warm(code, 1);
        sched_yield();
    }
    for (int child = 0; child < 8; child++) {
        int status;
        waitpid(children[child], &status, 0);
        REQUIRE(status == 0, "child %d ended with %#x", child, status);
    }
    munmap(code, PAGE);
}

static uint32_t *shared_code;
static atomic_int seen, wanted;

/* Only a context synchronization event is needed on this side (Arm ARM B2.7.4.2). */
static void *runner(void *unused)
{
    (void)unused;
    while (atomic_load(&wanted) >= 0) {
        atomic_store(&seen, entry(shared_code)(0));
        __asm__ volatile("isb");
    }
    return 0;
}

/* One processor executes what another one changes. */
static void observed(void)
{
    shared_code = pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    /* MOV W0, #1; then NOP or a branch over the next instruction, both of which may be exchanged while they run; MOV W0, #2; RET */
    shared_code[0] = mov(1), shared_code[1] = NOP, shared_code[2] = mov(2), shared_code[3] = RET;
    publish(shared_code, 16);
    pthread_t thread;
    REQUIRE(!pthread_create(&thread, 0, runner, 0), "no thread");
    for (int turn = 0; turn < 300; turn++) {
        int expected = turn % 2 ? 1 : 2;
        __atomic_store_n(&shared_code[1], turn % 2 ? 0x14000002u : NOP, __ATOMIC_RELAXED);
        publish(shared_code + 1, 4);
        long waited = 0;
        while (atomic_load(&seen) != expected)
            REQUIRE(++waited < 1000000000, "turn %d was never seen", turn);
    }
    atomic_store(&wanted, -1);
    pthread_join(thread, 0);
}

/* A debugger's breakpoint in hot code of another process. */
static void traced(void)
{
    uint32_t *code = pages(1, PROT_READ | PROT_WRITE | PROT_EXEC);
    code[0] = mov(7), code[1] = NOP, code[2] = NOP, code[3] = RET;
    publish(code, 16);
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (int turn = 0; turn < 20; turn++) {
            warm(code, 7);
            raise(SIGUSR1);
        }
        _exit(0);
    }
    int status, breakpoints = 0;
    long original = 0;
    waitpid(child, &status, 0);
    original = ptrace(PTRACE_PEEKTEXT, child, code + 2, 0);
    for (;;) {
        ptrace(PTRACE_CONT, child, 0, 0);
        waitpid(child, &status, 0);
        if (WIFEXITED(status))
            break;
        REQUIRE(WIFSTOPPED(status), "status %#x", status);
        long word = original;
        if (WSTOPSIG(status) == SIGUSR1) {
            uint32_t brk[] = { BRK, (uint32_t)(original >> 32) };
            memcpy(&word, brk, sizeof word);
        } else {
            REQUIRE(WSTOPSIG(status) == SIGTRAP, "signal %d", WSTOPSIG(status));
            breakpoints++;
        }
        REQUIRE(!ptrace(PTRACE_POKETEXT, child, code + 2, word), "poke");
    }
    REQUIRE(WEXITSTATUS(status) == 0 && breakpoints == 19, "%d breakpoints, status %#x", breakpoints, status);
}

/* The kernel's BPF compiler: a filter that lets datagrams of one length through, often replaced by another. */
static void filtered(void)
{
    int ends[2];
    REQUIRE(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, ends), "no sockets");
    for (unsigned length = 1; length < 200; length++) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, length, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, 0xffff),
            BPF_STMT(BPF_RET | BPF_K, 0),
        };
        struct sock_fprog program = { .len = 4, .filter = code };
        REQUIRE(!setsockopt(ends[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), "no filter");
        char data[256] = "";
        for (unsigned sent = length - 1; sent <= length + 1; sent++) {
            (void)!send(ends[0], data, sent, 0);
            ssize_t got = recv(ends[1], data, sizeof data, 0);
            REQUIRE((got >= 0) == (sent == length) || sent == 0, "%u bytes through a filter for %u: %zd", sent, length, got);
        }
    }
}

static void secured(void)
{
    for (int code = 1; code < 40; code++) {
        pid_t child = fork();
        if (!child) {
            struct sock_filter filter[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
                /* getpriority */
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 141, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | code),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
            };
            struct sock_fprog program = { .len = 4, .filter = filter };
            if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
                _exit(2);
            for (int turn = 0; turn < HOT; turn++)
                if (getpriority(PRIO_PROCESS, 0) != -1 || errno != code)
                    _exit(1);
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        REQUIRE(status == 0, "filter %d ended with %#x", code, status);
    }
}

static void put(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_APPEND);
    REQUIRE(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text), "%s to %s", text, path);
    close(file);
}

/* The kernel patches its own hot code. */
static void probed(void)
{
    mkdir("/tmp/tracing", 0700);
    REQUIRE(!mount("tracefs", "/tmp/tracing", "tracefs", 0, 0), "no tracefs");
    for (int turn = 0; turn < 5; turn++) {
        put("/tmp/tracing/kprobe_events", "p:mine do_sys_openat2\n");
        put("/tmp/tracing/events/kprobes/mine/enable", "1");
        for (int i = 0; i < HOT; i++)
            close(open("/proc/version", O_RDONLY));
        put("/tmp/tracing/events/kprobes/mine/enable", "0");
        char line[256] = "";
        FILE *profile = fopen("/tmp/tracing/kprobe_profile", "r");
        unsigned long hits = 0;
        REQUIRE(profile && fgets(line, sizeof line, profile) && sscanf(line, " mine %lu", &hits) == 1, "profile: %s", line);
        fclose(profile);
        REQUIRE(hits >= HOT && hits < 2 * HOT, "%lu hits", hits);
        put("/tmp/tracing/kprobe_events", "-:mine\n");
    }
}

int main(void)
{
    setvbuf(stdout, 0, _IONBF, 0);
    rewritten();
    patched();
    protected();
    remapped();
    forked();
    observed();
    traced();
    filtered();
    secured();
    probed();
    puts("every change was seen");
    return 0;
}
