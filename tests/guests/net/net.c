/*
 * What a guest does with its network, for tests/net_user.rs.
 *
 *   net cat ADDRESS PORT          standard input to a TCP server, what it says to standard output; each direction ends by itself
 *   net take PORT                 the first client's stream to standard output
 *   net http PORT                 answers every request with its path, many at a time
 *   net udp ADDRESS PORT BYTES    sends a datagram and prints how many bytes come back, and whether they are the same
 *   net udpecho PORT              sends every datagram back
 *   net dns ADDRESS NAME...       asks for the IPv4 addresses of all names over one TCP connection; prints "NAME CODE ADDRESS" as answers come
 *   net offload on|off            whether eth0 takes frames that are larger than its MTU (the driver's GUEST_TSO4 and the like)
 *
 * Servers print "listening" when they do.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[1 << 17], other[1 << 17];

static void fail(const char *what)
{
    /* On standard output: that is what the test reads. */
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static socklen_t parse(const char *address, const char *port, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;

    memset(out, 0, sizeof(*out));
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(atoi(port));
        return sizeof(*v4);
    }
    if (inet_pton(AF_INET6, address, &v6->sin6_addr) != 1)
        fail(address);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(atoi(port));
    return sizeof(*v6);
}

static void write_all(int fd, const char *data, ssize_t len)
{
    while (len > 0) {
        ssize_t written = write(fd, data, len);

        if (written < 0)
            fail("write");
        data += written;
        len -= written;
    }
}

static void cat(const char *address, const char *port)
{
    struct sockaddr_storage to;
    socklen_t len = parse(address, port, &to);
    int fd = socket(to.ss_family, SOCK_STREAM, 0);
    struct pollfd polled[2] = { { .fd = 0, .events = POLLIN }, { .fd = fd, .events = POLLIN } };

    if (fd < 0 || connect(fd, (struct sockaddr *)&to, len) < 0)
        fail("connect");
    /* Each direction ends by itself. */
    while (polled[0].fd >= 0 || polled[1].fd >= 0) {
        ssize_t count;

        if (poll(polled, 2, -1) < 0)
            fail("poll");
        if (polled[0].revents) {
            count = read(0, buffer, sizeof(buffer));
            if (count <= 0) {
                shutdown(fd, SHUT_WR);
                polled[0].fd = -1;
            }
            write_all(fd, buffer, count);
        }
        if (polled[1].revents) {
            count = read(fd, buffer, sizeof(buffer));
            if (count < 0)
                fail("read");
            if (count == 0)
                polled[1].fd = -1;
            write_all(1, buffer, count);
        }
    }
}

static int listen_on(const char *port, int type)
{
    struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(port)) };
    int fd = socket(AF_INET6, type, 0), on = 1;

    if (fd < 0)
        fail("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
        fail("bind");
    if (type == SOCK_STREAM && listen(fd, 4096) < 0)
        fail("listen");
    puts("listening");
    fflush(stdout);
    return fd;
}

static void take(const char *port)
{
    int fd = accept(listen_on(port, SOCK_STREAM), NULL, NULL);
    ssize_t count;

    if (fd < 0)
        fail("accept");
    while ((count = read(fd, buffer, sizeof(buffer))) > 0)
        write_all(1, buffer, count);
    if (count < 0)
        fail("read");
}

static void *serve(void *argument)
{
    int fd = (int)(long)argument, body;
    char request[4096], reply[8192], path[1024] = "";
    ssize_t len = 0, count;

    do {
        count = read(fd, request + len, sizeof(request) - 1 - len);
        len += count > 0 ? count : 0;
        request[len] = 0;
    } while (count > 0 && !strstr(request, "\r\n\r\n"));
    sscanf(request, "GET %1023s", path);
    body = strlen(path) + 1;
    count = snprintf(reply, sizeof(reply), "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s\n", body, path);
    if (write(fd, reply, count) != count)
        perror("reply");
    close(fd);
    return NULL;
}

static void http(const char *port)
{
    int listener = listen_on(port, SOCK_STREAM);

    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;

        if (fd < 0)
            fail("accept");
        if (pthread_create(&thread, NULL, serve, (void *)(long)fd))
            fail("pthread_create");
        pthread_detach(thread);
    }
}

static void udp(const char *address, const char *port, const char *bytes)
{
    struct sockaddr_storage to;
    socklen_t len = parse(address, port, &to);
    int fd = socket(to.ss_family, SOCK_DGRAM, 0), size = atoi(bytes);
    ssize_t count;

    for (int i = 0; i < size; i++)
        buffer[i] = i * 7 + (i >> 8);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, len) < 0)
        fail("connect");
    if (send(fd, buffer, size, 0) != size)
        fail("send");
    count = recv(fd, other, sizeof(other), 0);
    if (count < 0)
        fail("recv");
    printf("%zd bytes, %s\n", count, count == size && !memcmp(buffer, other, size) ? "the same" : "others");
}

static void udpecho(const char *port)
{
    int fd = listen_on(port, SOCK_DGRAM);

    for (;;) {
        struct sockaddr_storage from;
        socklen_t len = sizeof(from);
        ssize_t count = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&from, &len);

        if (count < 0 || sendto(fd, buffer, count, 0, (struct sockaddr *)&from, len) != count)
            fail("echo");
    }
}

static void read_all(int fd, void *data, ssize_t len)
{
    for (ssize_t got = 0; got < len;) {
        ssize_t count = read(fd, (char *)data + got, len - got);

        if (count <= 0)
            fail("read");
        got += count;
    }
}

/* RFC 1035 §4.1, §4.2.2: the ID is the name's place. */
static ssize_t question(int id, const char *name, unsigned char *out)
{
    unsigned char *at = out + 2;
    const unsigned char header[12] = { 0, id, 1, 0, 0, 1 }, rest[5] = { 0, 0, 1, 0, 1 };

    memcpy(at, header, sizeof(header));
    at += sizeof(header);
    while (*name) {
        size_t label = strcspn(name, ".");

        *at++ = label;
        memcpy(at, name, label);
        at += label;
        name += label + (name[label] == '.');
    }
    memcpy(at, rest, sizeof(rest));
    at += sizeof(rest);
    out[0] = (at - out - 2) >> 8;
    out[1] = at - out - 2;
    return at - out;
}

static void dns(const char *address, int count, char **names)
{
    struct sockaddr_storage to;
    socklen_t len = parse(address, "53", &to);
    int fd = socket(to.ss_family, SOCK_STREAM, 0);
    ssize_t size = 0;

    if (fd < 0 || connect(fd, (struct sockaddr *)&to, len) < 0)
        fail("connect");
    for (int i = 0; i < count; i++)
        size += question(i, names[i], (unsigned char *)buffer + size);
    write_all(fd, buffer, size);
    for (int i = 0; i < count; i++) {
        unsigned char *answer = (unsigned char *)other, text[INET_ADDRSTRLEN] = "-";

        read_all(fd, answer, 2);
        size = answer[0] << 8 | answer[1];
        read_all(fd, answer, size);
        /* An answer with one address ends with it; a server's own options are not asked for. */
        if (answer[7] == 1)
            inet_ntop(AF_INET, answer + size - 4, (char *)text, sizeof(text));
        printf("%s %d %s\n", names[answer[1] % count], answer[3] & 15, text);
    }
}

static void offload(int on)
{
    static struct {
        struct ethtool_gstrings head;
        char names[512][ETH_GSTRING_LEN];
    } features = { .head = { .cmd = ETHTOOL_GSTRINGS, .string_set = ETH_SS_FEATURES } };
    struct {
        struct ethtool_sfeatures head;
        struct ethtool_set_features_block blocks[16];
    } set = { .head = { .cmd = ETHTOOL_SFEATURES } };
    struct ifreq request = { .ifr_name = "eth0", .ifr_data = (void *)&features };
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    unsigned bit = 0;

    if (ioctl(fd, SIOCETHTOOL, &request) < 0)
        fail("features");
    while (bit < features.head.len && strcmp(features.names[bit], "rx-gro-hw"))
        bit++;
    if (bit == features.head.len)
        fail("rx-gro-hw");
    set.head.size = (features.head.len + 31) / 32;
    set.blocks[bit / 32].valid = 1u << bit % 32;
    set.blocks[bit / 32].requested = on ? 1u << bit % 32 : 0;
    request.ifr_data = (void *)&set;
    if (ioctl(fd, SIOCETHTOOL, &request) < 0)
        fail("rx-gro-hw");
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";

    if (!strcmp(what, "cat") && argc == 4)
        cat(argv[2], argv[3]);
    else if (!strcmp(what, "take"))
        take(argv[2]);
    else if (!strcmp(what, "http"))
        http(argv[2]);
    else if (!strcmp(what, "udp") && argc == 5)
        udp(argv[2], argv[3], argv[4]);
    else if (!strcmp(what, "udpecho"))
        udpecho(argv[2]);
    else if (!strcmp(what, "dns") && argc > 3)
        dns(argv[2], argc - 3, argv + 3);
    else if (!strcmp(what, "offload"))
        offload(!strcmp(argv[2], "on"));
    else
        return 2;
    return 0;
}
