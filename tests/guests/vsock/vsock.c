/* What the vsock tests run in the guest: AF_VSOCK with plain system calls. Every failure is one line and exit status 1.
 *
 *   cat PORT          connects to the host: standard input goes there, what comes back to standard output; each end by itself
 *   try PORT          connects to the host and says what came of it
 *   fill PORT BYTES   sends that many bytes, and says how many were taken when nothing moved for a second
 *   many PORT COUNT   opens that many connections, then sends a line over each and wants it back
 *   echo PORT         says "listening", sends everything back to whoever connects, until killed
 *   take PORT         says "listening", copies one connection to standard output
 *   give PORT         says "listening", copies standard input to one connection
 *   hold PORT         says "listening", accepts one connection and neither reads nor closes it
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { MAX_CONNECTIONS = 4096, BUFFER = 65536 };
static char buffer[BUFFER];

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static struct sockaddr_vm address(unsigned cid, const char *port) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = (unsigned)strtoul(port, NULL, 10)};
    return address;
}

static int vsock(void) {
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0) fail("socket");
    return fd;
}

static int connected(const char *port) {
    struct sockaddr_vm host = address(VMADDR_CID_HOST, port);
    int fd = vsock();
    if (connect(fd, (struct sockaddr *)&host, sizeof host)) fail("connect");
    return fd;
}

static int listening(const char *port) {
    struct sockaddr_vm any = address(VMADDR_CID_ANY, port);
    int fd = vsock();
    if (bind(fd, (struct sockaddr *)&any, sizeof any)) fail("bind");
    if (listen(fd, MAX_CONNECTIONS)) fail("listen");
    puts("listening");
    fflush(stdout);
    return fd;
}

static int accepted(const char *port) {
    int fd = accept(listening(port), NULL, NULL);
    if (fd < 0) fail("accept");
    return fd;
}

static void write_all(int fd, const char *from, size_t len) {
    while (len > 0) {
        ssize_t done = write(fd, from, len);
        if (done < 0) fail("write");
        from += done;
        len -= (size_t)done;
    }
}

/* Copies until the end of `from`. */
static void copy(int from, int to) {
    ssize_t len;
    while ((len = read(from, buffer, BUFFER)) > 0) write_all(to, buffer, (size_t)len);
    if (len < 0) fail("read");
}

static void cat(const char *port) {
    int fd = connected(port);
    pid_t reader = fork();
    if (reader < 0) fail("fork");
    if (reader == 0) {
        copy(fd, 1);
        exit(0);
    }
    copy(0, fd);
    shutdown(fd, SHUT_WR);
    int status = 1;
    waitpid(reader, &status, 0);
    exit(status != 0);
}

static void fill(const char *port, size_t bytes) {
    int fd = connected(port);
    size_t sent = 0;
    int told = 0;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (sent < bytes) {
        size_t len = bytes - sent < BUFFER ? bytes - sent : BUFFER;
        ssize_t done = write(fd, buffer, len);
        if (done > 0) {
            sent += (size_t)done;
            continue;
        }
        if (done < 0 && errno != EAGAIN) fail("write");
        struct pollfd ready = {.fd = fd, .events = POLLOUT};
        if (poll(&ready, 1, told ? -1 : 1000) == 0) {
            printf("full after %zu\n", sent);
            fflush(stdout);
            told = 1;
        }
    }
    shutdown(fd, SHUT_WR);
    if (fcntl(fd, F_SETFL, 0) || read(fd, buffer, 1) != 0) fail("the end");
    puts("all taken");
}

static void many(const char *port, int count) {
    static int fds[MAX_CONNECTIONS];
    char line[32], back[32];
    for (int i = 0; i < count; i++) fds[i] = connected(port);
    for (int i = 0; i < count; i++) write_all(fds[i], line, (size_t)sprintf(line, "line %d\n", i));
    for (int i = 0; i < count; i++) {
        size_t len = (size_t)sprintf(line, "line %d\n", i), got = 0;
        while (got < len) {
            ssize_t done = read(fds[i], back + got, len - got);
            if (done <= 0) fail("read");
            got += (size_t)done;
        }
        if (memcmp(line, back, len)) fail("another line");
    }
    printf("%d answers\n", count);
}

static void echo(const char *port) {
    static struct pollfd fds[MAX_CONNECTIONS + 1];
    int count = 1;
    fds[0].fd = listening(port);
    fds[0].events = POLLIN;
    for (;;) {
        if (poll(fds, (nfds_t)count, -1) < 0) fail("poll");
        if (fds[0].revents && count <= MAX_CONNECTIONS) {
            int fd = accept(fds[0].fd, NULL, NULL);
            if (fd >= 0) {
                fds[count].fd = fd;
                fds[count].revents = 0;
                fds[count++].events = POLLIN;
            }
        }
        for (int i = 1; i < count; i++) {
            if (!fds[i].revents) continue;
            ssize_t len = read(fds[i].fd, buffer, BUFFER);
            if (len > 0) {
                write_all(fds[i].fd, buffer, (size_t)len);
            } else {
                close(fds[i].fd);
                fds[i--] = fds[--count];
            }
        }
    }
}

int main(int argc, char **argv) {
    struct rlimit files = {MAX_CONNECTIONS + 64, MAX_CONNECTIONS + 64};
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    if (argc < 3) return 2;
    const char *what = argv[1], *port = argv[2];
    size_t number = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    if (!strcmp(what, "cat")) cat(port);
    if (!strcmp(what, "try")) connected(port), puts("connected");
    if (!strcmp(what, "fill")) fill(port, number);
    if (!strcmp(what, "many")) many(port, (int)number);
    if (!strcmp(what, "echo")) echo(port);
    if (!strcmp(what, "take")) copy(accepted(port), 1);
    if (!strcmp(what, "give")) copy(0, accepted(port));
    if (!strcmp(what, "hold")) accepted(port), pause();
    return 0;
}
