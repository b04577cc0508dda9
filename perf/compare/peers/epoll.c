/* The lower bound: the cost of the kernel alone. A level-triggered epoll loop with fixed buffers and no error messages.
 *
 * It serves the workloads that send small replies, and uses no trick that a loop for real programs could not use.
 * All delays are equal, so a ring of clients in the order of arrival serves as the queue of timers. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define RING 65536
#define HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
static const char REPLY[] = HEAD "Content-Length: 35\r\n\r\na reply of one hundred bytes altog.";
static const char LAST[] = HEAD "Connection: close\r\nContent-Length: 27\r\n\r\nthe reply and the end of it";
static const char LATE[] = "HTTP/1.1 200 OK\r\nDate: Wed, 03 Oct 2012 23:43:10 GMT\r\nContent-Type: text/plain\r\n"
                           "Content-Length: 9\r\n\r\nomglolwtf";
static struct { int fd; double due; } ring[RING];
static unsigned first, last;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void answer(int fd, const char *text, size_t size, int end)
{
    if (send(fd, text, size, MSG_NOSIGNAL) < 0 || end)
        close(fd);
}

static void handle_read(int fd, const char *workload, double delay)
{
    static char data[65536];
    if (recv(fd, data, sizeof data, 0) <= 0) {
        close(fd);
    } else if (delay) {
        ring[last % RING].fd = fd;
        ring[last++ % RING].due = now() + delay;
    } else if (!strcmp(workload, "churn") || !strcmp(workload, "defer")) {
        answer(fd, LAST, sizeof LAST - 1, 1);
    } else {
        answer(fd, REPLY, sizeof REPLY - 1, 0);
    }
}

int main(int argc, char **argv) /* --port PORT --workload NAME */
{
    const char *workload = argc > 4 ? argv[4] : "keepalive";
    double delay = !strcmp(workload, "seed") ? 1 : !strcmp(workload, "pending") ? 3600 : 0;
    struct sockaddr_in at = {AF_INET, htons(argc > 2 ? atoi(argv[2]) : 0), {htonl(INADDR_LOOPBACK)}, {0}};
    socklen_t size = sizeof at;
    struct epoll_event ready[256], event = {EPOLLIN, {0}};
    int one = 1, poll = epoll_create1(0), server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* inherited */
    if (!strcmp(workload, "defer"))
        setsockopt(server, IPPROTO_TCP, TCP_DEFER_ACCEPT, &one, sizeof one);
    if (bind(server, (void *)&at, size) || listen(server, 4096) || getsockname(server, (void *)&at, &size))
        return 1;
    event.data.fd = server;
    epoll_ctl(poll, EPOLL_CTL_ADD, server, &event);
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port)), fflush(stdout);
    for (;;) {
        double left = first == last ? 0 : ring[first % RING].due - now();
        int count = epoll_wait(poll, ready, 256, first == last ? -1 : left > 0 ? (int)(left * 1000) + 1 : 0);
        for (int i = 0; i < count; i++)
            if (ready[i].data.fd != server)
                handle_read(ready[i].data.fd, workload, delay);
            else
                for (int n = 0; n < 64 && (event.data.fd = accept4(server, 0, 0, SOCK_NONBLOCK)) >= 0; n++)
                    epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event);
        for (double t = first == last ? 0 : now(); first != last && ring[first % RING].due <= t; first++)
            answer(ring[first % RING].fd, LATE, sizeof LATE - 1, 1);
    }
}
