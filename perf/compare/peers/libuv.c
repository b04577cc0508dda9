/* libuv without Python: what the loop costs on which uvloop and Node are built.
 *
 * What the kernel does not accept at once of a reply is queued, as in every peer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#define HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
#define SEND(client, text) answer(client, text, sizeof text - 1)
static const char BEGIN[] = HEAD "Content-Length: 35\r\n\r\n", BODY[] = "a reply of one hundred bytes altog.",
                  REPLY[] = HEAD "Content-Length: 35\r\n\r\na reply of one hundred bytes altog.",
                  LAST[] = HEAD "Connection: close\r\nContent-Length: 27\r\n\r\nthe reply and the end of it",
                  LATE[] = "HTTP/1.1 200 OK\r\nDate: Wed, 03 Oct 2012 23:43:10 GMT\r\nContent-Type: text/plain\r\n"
                           "Content-Length: 9\r\n\r\nomglolwtf",
                  SMALL[] = "a piece of text\n";
struct client { union uv_any_handle socket; uv_timer_t timer; int timed, open; };
struct rest { uv_write_t request; char data[]; };
struct workload { const char *name; void (*handle_read)(struct client *, const char *, ssize_t); };
static const struct workload *workload;
static int delay;

static void written(uv_write_t *request, int status)
{
    (void)status;
    free(request);
}

static void freed(uv_handle_t *handle)
{
    struct client *client = handle->data;
    if (!--client->open)
        free(client);
}

static void end(struct client *client)
{
    if (uv_is_closing(&client->socket.handle))
        return;
    uv_close(&client->socket.handle, freed);
    if (client->timed)
        uv_close((uv_handle_t *)&client->timer, freed);
}

static void answer(struct client *client, const char *text, ssize_t size)
{
    uv_buf_t buffer = uv_buf_init((char *)text, size);
    ssize_t sent = uv_try_write(&client->socket.stream, &buffer, 1);
    if (sent == size)
        return;
    sent = sent < 0 ? 0 : sent;
    struct rest *rest = malloc(sizeof *rest + size - sent);
    buffer = uv_buf_init(memcpy(rest->data, text + sent, size - sent), size - sent);
    uv_write(&rest->request, &client->socket.stream, &buffer, 1, written);
}

static void reply(struct client *client, const char *data, ssize_t size) { (void)data, (void)size, SEND(client, REPLY); }
static void echo(struct client *client, const char *data, ssize_t size) { answer(client, data, size); }
static void twice(struct client *client, const char *data, ssize_t size)
{
    (void)data, (void)size;
    SEND(client, BEGIN), SEND(client, BODY);
}

static void small(struct client *client, const char *data, ssize_t size)
{
    (void)data, (void)size;
    for (int n = 0; n < 32; n++)
        SEND(client, SMALL);
}

static void pipeline(struct client *client, const char *data, ssize_t size)
{
    for (const char *at = data; (at = memmem(at, data + size - at, "\r\n\r\n", 4)); at += 4)
        SEND(client, REPLY);
}

static void churn(struct client *client, const char *data, ssize_t size)
{
    (void)data, (void)size;
    SEND(client, LAST);
    end(client);
}

static void answer_late(uv_timer_t *timer)
{
    SEND(timer->data, LATE);
    end(timer->data);
}

static void late(struct client *client, const char *data, ssize_t size)
{
    (void)data, (void)size;
    if (client->timed++)
        return;
    uv_timer_init(client->socket.handle.loop, &client->timer);
    client->timer.data = client, client->open++;
    uv_timer_start(&client->timer, answer_late, delay, 0);
}

static const struct workload WORKLOADS[] = {{"keepalive", reply}, {"echo", echo}, {"twice", twice}, {"small", small},
    {"pipeline", pipeline}, {"churn", churn}, {"defer", churn}, {"seed", late}, {"pending", late}, {0, 0}};

static void allocate(uv_handle_t *handle, size_t size, uv_buf_t *buffer)
{
    static char data[65536];
    (void)handle, (void)size;
    *buffer = uv_buf_init(data, sizeof data);
}

static void handle_read(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer)
{
    if (size < 0)
        end(stream->data);
    else if (size)
        workload->handle_read(stream->data, buffer->base, size);
}

static void accept_client(uv_stream_t *server, int status)
{
    struct client *client = calloc(1, sizeof *client);
    (void)status;
    uv_tcp_init(server->loop, &client->socket.tcp);
    uv_tcp_nodelay(&client->socket.tcp, 1);
    client->socket.handle.data = client, client->open = 1;
    if (uv_accept(server, &client->socket.stream))
        end(client);
    else
        uv_read_start(&client->socket.stream, allocate, handle_read);
}

int main(int argc, char **argv) /* --port PORT --workload NAME */
{
    struct sockaddr_in at;
    int size = sizeof at, fd, one = 1;
    uv_tcp_t server;
    for (workload = WORKLOADS; argc > 4 && workload->name && strcmp(workload->name, argv[4]); workload++)
        ;
    if (!workload->name)
        return 2;
    signal(SIGPIPE, SIG_IGN); /* a client may be gone before its reply */
    delay = strcmp(workload->name, "seed") ? 3600000 : 1000;
    uv_tcp_init(uv_default_loop(), &server);
    uv_ip4_addr("127.0.0.1", argc > 2 ? atoi(argv[2]) : 0, &at);
    if (uv_tcp_bind(&server, (void *)&at, 0) || uv_listen((uv_stream_t *)&server, 4096, accept_client))
        return 1;
    uv_tcp_getsockname(&server, (void *)&at, &size);
    if (!uv_fileno((uv_handle_t *)&server, &fd) && !strcmp(workload->name, "defer"))
        setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &one, sizeof one);
    printf("listening on 127.0.0.1:%d\n", ntohs(at.sin_port)), fflush(stdout);
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
