/* A load without an interpreter: requests as fast as they are answered, or at a fixed rate whatever the server does.
 *
 * load [options] PORT|PATH     connects to a port of 127.0.0.1, or to a Unix socket
 *   -c N   connections (default 100)         -q N   bytes of a request; 0: a short GET (default)
 *   -r N   bytes of a reply (default 100)    -k N   requests that are sent at once, and answered one by one
 *   -n     a new connection for each request: a reply ends with the connection
 *   -d     datagrams                         -R N   requests a second; 0: send when answered (default)
 *   -t S   seconds
 *
 * At the end it waits for the replies in flight, so that no server has to write to connections that are gone.
 * With a rate, the times count from when a request was due, and the load never sleeps, because a late wake-up would be
 * measured too. Prints one line of JSON. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST 100000  /* connections */
#define SOURCES 8    /* local addresses: each has its own range of ports */
#define PATIENCE 3   /* seconds after the end in which the last replies may arrive */
#define GET "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24 /* connect() chooses the port, not bind() */
#endif

struct client { int fd; size_t missing; double due; };
static struct client clients[MOST];
static int idle[MOST], idle_count, in_flight, opened, events, connections = 100, depth = 1, reconnect, datagrams;
static size_t request_size, reply_size = 100;
static double rate, seconds = 1, start;
static const char *address;
static char *request, data[1 << 20];
static float *times;
static size_t answered, room;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int connected(void)
{
    static unsigned count;
    int one = 1, unix_socket = *address == '/', kind = datagrams ? SOCK_DGRAM : SOCK_STREAM;
    int fd = socket(unix_socket ? AF_UNIX : AF_INET, kind, 0);
    struct sockaddr_un path = {AF_UNIX, {0}};
    struct sockaddr_in from = {AF_INET, 0, {htonl(INADDR_LOOPBACK + count++ % SOURCES)}, {0}};
    struct sockaddr_in to = {AF_INET, htons(atoi(address)), {htonl(INADDR_LOOPBACK)}, {0}};
    if (fd < 0)
        fail("socket");
    if (unix_socket) {
        strncpy(path.sun_path, address, sizeof path.sun_path - 1);
        if (connect(fd, (void *)&path, sizeof path))
            fail("connect");
        return fd;
    }
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (void *)&from, sizeof from) || connect(fd, (void *)&to, sizeof to))
        fail("connect");
    if (!datagrams)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void open_client(int index)
{
    struct epoll_event event = {EPOLLIN, {.u32 = index}};
    clients[index].fd = connected();
    if (epoll_ctl(events, EPOLL_CTL_ADD, clients[index].fd, &event))
        fail("epoll_ctl");
}

static void ask(int index, double due)
{
    struct client *client = &clients[index];
    if (reconnect)
        open_client(index);
    in_flight++;
    client->due = due;
    client->missing = reply_size * depth;
    if (send(client->fd, request, request_size * depth, MSG_NOSIGNAL) < 0)
        fail("send");
}

static void done(int index)
{
    struct client *client = &clients[index];
    double at = now();
    in_flight--;
    if (reconnect)
        close(client->fd);
    for (int n = 0; n < depth; n++) {
        if (answered == room && !(times = realloc(times, (room = 2 * room + 4096) * sizeof *times)))
            fail("realloc");
        times[answered++] = (at - client->due) * 1e6;
    }
    if (rate)
        idle[idle_count++] = index;
    else if (at < start + seconds)
        ask(index, at);
}

static void handle_read(int index)
{
    struct client *client = &clients[index];
    ssize_t size = recv(client->fd, data, sizeof data, 0);
    if (size < 0 || (!size && !reconnect) || (!size && client->missing))
        fail(size ? "recv" : "the server closed a connection too early");
    client->missing -= (size_t)size < client->missing ? (size_t)size : client->missing;
    if (reconnect ? !size : !client->missing)
        done(index);
}

static int slower(const void *a, const void *b)
{
    return (*(float *)a > *(float *)b) - (*(float *)a < *(float *)b);
}

static double quantile(double share)
{
    return answered ? times[(size_t)(share * (answered - 1))] : 0;
}

static void parse(int argc, char **argv)
{
    for (int option; (option = getopt(argc, argv, "c:q:r:k:ndR:t:")) >= 0;)
        switch (option) {
        case 'c': connections = atoi(optarg); break;
        case 'q': request_size = atol(optarg); break;
        case 'r': reply_size = atol(optarg); break;
        case 'k': depth = atoi(optarg); break;
        case 'n': reconnect = 1; break;
        case 'd': datagrams = 1; break;
        case 'R': rate = atof(optarg); break;
        case 't': seconds = atof(optarg); break;
        default: exit(2);
        }
    if (optind >= argc || connections > MOST || depth < 1)
        exit(2);
    address = argv[optind];
    if (request_size) {
        request = calloc(request_size, depth);
    } else {
        request_size = strlen(GET);
        request = calloc(request_size + 1, depth + 1);
        for (int n = 0; n < depth; n++)
            strcat(request, GET);
    }
}

int main(int argc, char **argv)
{
    static struct epoll_event ready[512];
    struct rlimit limit;
    size_t asked = 0, total;
    double end;
    parse(argc, argv);
    getrlimit(RLIMIT_NOFILE, &limit), limit.rlim_cur = limit.rlim_max, setrlimit(RLIMIT_NOFILE, &limit);
    alarm(seconds + 4 * PATIENCE); /* a server that does not answer ends the load */
    events = epoll_create1(0);
    for (; opened < (rate && reconnect ? MOST : connections); opened++) {
        if (!reconnect)
            open_client(opened);
        idle[idle_count++] = opened;
    }
    total = rate * seconds;
    start = now();
    if (!rate)
        while (idle_count)
            ask(idle[--idle_count], now());
    for (;;) {
        for (; rate && asked < total && idle_count && start + asked / rate <= now(); asked++)
            ask(idle[--idle_count], start + asked / rate);
        int count = epoll_wait(events, ready, 512, rate ? 0 : 100);
        for (int i = 0; i < count; i++)
            handle_read(ready[i].data.u32);
        end = now();
        if (rate ? answered == total : end >= start + seconds && !in_flight)
            break;
        if (end > start + seconds + PATIENCE) {
            fprintf(stderr, "%zu answers to %zu requests\n", answered, rate ? total : answered + in_flight * depth);
            return 1;
        }
    }
    qsort(times, answered, sizeof *times, slower);
    printf("{\"answered\": %zu, \"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f}\n", answered,
           end - start, quantile(0.5), quantile(0.99), quantile(0.999));
}
