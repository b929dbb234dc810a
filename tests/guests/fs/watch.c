// What inotify says of a directory: `EVENT mask name` a line, without opens, reads and closes, until it is killed. `READY` comes first.
#include <stdio.h>
#include <sys/inotify.h>
#include <unistd.h>

static const struct { unsigned mask; const char *name; } names[] = {
    { IN_CREATE, "create" }, { IN_DELETE, "delete" }, { IN_MODIFY, "modify" }, { IN_ATTRIB, "attrib" },
    { IN_MOVED_FROM, "moved_from" }, { IN_MOVED_TO, "moved_to" }, { IN_DELETE_SELF, "delete_self" },
};

int main(int argc, char **argv) {
    static char buffer[65536] __attribute__((aligned(8)));
    int fd = inotify_init();
    for (int i = 1; i < argc; i++)
        if (inotify_add_watch(fd, argv[i], IN_ALL_EVENTS & ~(IN_OPEN | IN_ACCESS | IN_CLOSE)) < 0) return perror(argv[i]), 1;
    printf("READY\n");
    fflush(stdout);
    for (ssize_t len; (len = read(fd, buffer, sizeof buffer)) > 0;) {
        for (char *at = buffer; at < buffer + len;) {
            struct inotify_event *event = (struct inotify_event *)at;
            for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
                if (event->mask & names[i].mask) printf("EVENT %s %s\n", names[i].name, event->len ? event->name : ".");
            fflush(stdout);
            at += sizeof *event + event->len;
        }
    }
    return 0;
}
