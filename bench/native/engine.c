/* A stand-in for llama-server that costs next to nothing: what it spends is not mistaken for the path's own cost.
 *
 * One thread, epoll. Every stream gets one chunk of about 230 bytes each 1/FAKE_RATE second, at a phase of its own, so
 * that the streams do not tick together. A chunk carries its number and the nanosecond it was written, so the client
 * can tell lost, doubled and swapped chunks, and how long each was under way.
 *
 * Rules: one write a chunk; a chunk whose time has passed by more than a period is not made up for (a slow engine is
 * late, it does not burst); a stream whose client does not read gets no new chunks; a closed connection frees its
 * slot at once.
 *
 * Environment: FAKE_RATE chunks a second and stream (50), FAKE_CHUNKS of an answer without max_tokens (400),
 * FAKE_PREFILL_MS before the first chunk (0), FAKE_CLOSE=1 closes after a stream, as the real llama-server does (0).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 16384, MAX_EVENTS = 256, CHUNK_ROOM = 640, BODY_LIMIT = 16 << 20 };

struct conn {
    int fd;
    bool streaming, include_usage, wants_close;
    char *in;
    size_t in_len, in_room;
    char *out; /* what the socket did not take */
    size_t out_len, out_room;
    char chunk[CHUNK_ROOM]; /* one HTTP chunk, ready but for its number and time */
    size_t chunk_len, number_at, time_at;
    uint32_t sent, total;
    uint64_t due_ns;
    int heap_at; /* -1: not in the heap */
};

static struct conn *conns[MAX_FD];
static struct conn *heap[MAX_FD];
static int heap_len, epoll_fd, listen_fd;
static uint64_t period_ns, prefill_ns, next_id, random_state = 88172645463325252ull;
static uint32_t default_chunks, busy, parallel = 1, context = 4096;
static bool close_after_stream;
static const char *alias = "fake", *model_path = "fake.gguf";

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t random_below(uint64_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return limit ? random_state % limit : 0;
}

static void die(const char *what) {
    fprintf(stderr, "fake engine: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *room(void *old, size_t size) {
    void *new = realloc(old, size);
    if (!new) die("memory");
    return new;
}

/* -- which stream is due next: a binary heap ------------------------------------------------------------------- */
static void heap_put(int at, struct conn *c) {
    heap[at] = c;
    c->heap_at = at;
}

static void heap_settle(int at, struct conn *c) {
    while (at > 0 && heap[(at - 1) / 2]->due_ns > c->due_ns) {
        heap_put(at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_len) break;
        if (child + 1 < heap_len && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= c->due_ns) break;
        heap_put(at, heap[child]);
        at = child;
    }
    heap_put(at, c);
}

static void heap_add(struct conn *c) {
    heap_settle(heap_len++, c);
}

static void heap_remove(struct conn *c) {
    int at = c->heap_at;
    if (at < 0) return;
    c->heap_at = -1;
    struct conn *last = heap[--heap_len];
    if (last != c) heap_settle(at, last);
}

/* -- sockets --------------------------------------------------------------------------------------------------- */
static void watch(struct conn *c, int how, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = c->fd};
    if (epoll_ctl(epoll_fd, how, c->fd, &e) < 0) die("epoll_ctl");
}

static void drop(struct conn *c) {
    heap_remove(c);
    if (c->streaming) busy--;
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

/* False: the connection is gone. */
static bool put(struct conn *c, const char *bytes, size_t len) {
    if (!c->out_len) {
        ssize_t n = send(c->fd, bytes, len, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) return drop(c), false;
        if (n > 0) bytes += n, len -= (size_t)n;
        if (!len) return true;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    }
    if (c->out_len + len > c->out_room) c->out = room(c->out, c->out_room = (c->out_len + len) * 2);
    memcpy(c->out + c->out_len, bytes, len);
    c->out_len += len;
    return true;
}

static bool put_rest(struct conn *c) {
    ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN ? true : (drop(c), false);
    c->out_len -= (size_t)n;
    memmove(c->out, c->out + n, c->out_len);
    if (!c->out_len) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP);
    return true;
}

static bool respond(struct conn *c, int status, const char *type, const char *body) {
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %d %s\r\nServer: llama.cpp\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n",
                     status, status == 200 ? "OK" : "Error", type, strlen(body));
    return put(c, head, (size_t)n) && put(c, body, strlen(body));
}

/* -- what a stream sends --------------------------------------------------------------------------------------- */
static void hex(char *at, uint64_t value, int digits) {
    while (digits--) {
        at[digits] = "0123456789abcdef"[value & 15];
        value >>= 4;
    }
}

static void prepare_chunk(struct conn *c) {
    char data[CHUNK_ROOM - 16];
    int n = snprintf(data, sizeof data,
                     "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\" w000000\"}}],"
                     "\"created\":%ld,\"id\":\"chatcmpl-%032llx\",\"model\":\"%.200s\","
                     "\"system_fingerprint\":\"b11434-0000000000000000\",\"object\":\"chat.completion.chunk\"}\n\n",
                     (long)time(NULL), (unsigned long long)++next_id, alias);
    int head = snprintf(c->chunk, sizeof c->chunk, "%x\r\n", (unsigned)n);
    memcpy(c->chunk + head, data, (size_t)n);
    memcpy(c->chunk + head + n, "\r\n", 2);
    c->chunk_len = (size_t)(head + n + 2);
    c->number_at = (size_t)(strstr(c->chunk, "\" w000000") - c->chunk) + 3;
    c->time_at = (size_t)(strstr(c->chunk, "b11434-") - c->chunk) + 7;
}

static size_t last_event(char *to, size_t size, struct conn *c, bool usage) {
    char data[1024];
    int n = snprintf(data, sizeof data,
                     "data: {\"choices\":[%s],\"created\":%ld,\"id\":\"chatcmpl-%032llx\",\"model\":\"%.200s\","
                     "\"system_fingerprint\":\"b11434\",\"object\":\"chat.completion.chunk\",%s%u%s%u}%s\n\n",
                     usage ? "" : "{\"finish_reason\":\"stop\",\"index\":0,\"delta\":{}}", (long)time(NULL),
                     (unsigned long long)next_id, alias,
                     usage ? "\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":" : "\"timings\":{\"cache_n\":0,\"prompt_n\":8,\"predicted_n\":",
                     c->sent, usage ? ",\"total_tokens\":" : ",\"predicted_per_second\":",
                     usage ? c->sent + 8 : (unsigned)(1000000000ull / period_ns), "}");
    return (size_t)snprintf(to, size, "%x\r\n%s\r\n", (unsigned)n, data);
}

static void handle_input(struct conn *c);

static void finish(struct conn *c) {
    char tail[3072];
    size_t n = last_event(tail, sizeof tail, c, false);
    if (c->include_usage) n += last_event(tail + n, sizeof tail - n, c, true);
    n += (size_t)snprintf(tail + n, sizeof tail - n, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    heap_remove(c);
    c->streaming = false;
    busy--;
    if (!put(c, tail, n)) return;
    if (close_after_stream || c->wants_close) shutdown(c->fd, SHUT_WR);
    else if (c->in_len) handle_input(c);
}

static void tick(struct conn *c, uint64_t now) {
    uint64_t next = c->sent ? c->due_ns + period_ns : now + random_below(period_ns); /* a phase of its own */
    if (next <= now) next += (now - next) / period_ns * period_ns + period_ns;
    c->due_ns = next;
    heap_settle(c->heap_at, c);
    if (c->out_len) return;
    hex(c->chunk + c->number_at, c->sent++, 6);
    hex(c->chunk + c->time_at, now_ns(), 16);
    if (put(c, c->chunk, c->chunk_len) && c->sent >= c->total) finish(c);
}

/* -- requests -------------------------------------------------------------------------------------------------- */
/* The value after `"key":`, or NULL. Good enough for bodies of our own making. */
static const char *field(const char *body, const char *key) {
    const char *at = strstr(body, key);
    if (!at) return NULL;
    at += strlen(key);
    while (*at == ' ' || *at == ':') at++;
    return at;
}

static void chat(struct conn *c, const char *body) {
    const char *max = field(body, "\"max_tokens\""), *stream = field(body, "\"stream\"");
    const char *usage = field(body, "\"include_usage\"");
    if (!max) max = field(body, "\"max_completion_tokens\"");
    c->total = max && atoi(max) > 0 ? (uint32_t)atoi(max) : default_chunks;
    if (!stream || strncmp(stream, "true", 4)) {
        char reply[1024];
        snprintf(reply, sizeof reply,
                 "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\" w000000\"}}],"
                 "\"created\":%ld,\"model\":\"%.200s\",\"object\":\"chat.completion\",\"id\":\"chatcmpl-%032llx\","
                 "\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":1,\"total_tokens\":9}}",
                 (long)time(NULL), alias, (unsigned long long)++next_id);
        respond(c, 200, "application/json; charset=utf-8", reply);
        return;
    }
    static const char head[] = "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
                               "Keep-Alive: timeout=5, max=100\r\nTransfer-Encoding: chunked\r\n\r\n";
    c->include_usage = usage && !strncmp(usage, "true", 4);
    c->streaming = true;
    c->sent = 0;
    busy++;
    prepare_chunk(c);
    if (!put(c, head, sizeof head - 1)) return;
    c->due_ns = now_ns() + prefill_ns;
    heap_add(c);
    if (!prefill_ns) tick(c, now_ns());
}

static void list_models(struct conn *c) {
    char reply[1024];
    snprintf(reply, sizeof reply,
             "{\"models\":[{\"name\":\"%.200s\",\"model\":\"%.200s\"}],\"object\":\"list\",\"data\":[{\"id\":\"%.200s\","
             "\"aliases\":[\"%.200s\"],\"object\":\"model\",\"created\":%ld,\"owned_by\":\"llamacpp\","
             "\"meta\":{\"n_ctx_train\":%u,\"n_params\":1,\"size\":1}}]}",
             alias, alias, alias, alias, (long)time(NULL), context);
    respond(c, 200, "application/json; charset=utf-8", reply);
}

static void list_slots(struct conn *c) {
    size_t size = 128 * (size_t)parallel + 16, n = 1;
    char *reply = room(NULL, size);
    reply[0] = '[';
    for (uint32_t i = 0; i < parallel; i++)
        n += (size_t)snprintf(reply + n, size - n, "%s{\"id\":%u,\"n_ctx\":%u,\"speculative\":false,\"is_processing\":%s}",
                              i ? "," : "", i, context / parallel, i < busy ? "true" : "false");
    snprintf(reply + n, size - n, "]");
    respond(c, 200, "application/json; charset=utf-8", reply);
    free(reply);
}

static void props(struct conn *c) {
    char reply[1024];
    snprintf(reply, sizeof reply,
             "{\"default_generation_settings\":{\"id\":0,\"n_ctx\":%u},\"total_slots\":%u,\"model_alias\":\"%.200s\","
             "\"model_path\":\"%.200s\",\"modalities\":{\"vision\":false,\"audio\":false},\"chat_template\":\"\","
             "\"build_info\":\"b11434-fake\",\"is_sleeping\":false}",
             context / parallel, parallel, alias, model_path);
    respond(c, 200, "application/json; charset=utf-8", reply);
}

static void metrics(struct conn *c) {
    char reply[256];
    snprintf(reply, sizeof reply, "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing %u\n", busy);
    respond(c, 200, "text/plain; version=0.0.4", reply);
}

static void route(struct conn *c, const char *path, const char *body) {
    size_t len = strcspn(path, " ?");
    char name[64] = "";
    memcpy(name, path, len < sizeof name - 1 ? len : sizeof name - 1);
    if (!strcmp(name, "/v1/chat/completions") || !strcmp(name, "/chat/completions")) chat(c, body);
    else if (!strcmp(name, "/health") || !strcmp(name, "/v1/health")) respond(c, 200, "application/json; charset=utf-8", "{\"status\":\"ok\"}");
    else if (!strcmp(name, "/v1/models") || !strcmp(name, "/models")) list_models(c);
    else if (!strcmp(name, "/slots")) list_slots(c);
    else if (!strcmp(name, "/props")) props(c);
    else if (!strcmp(name, "/metrics")) metrics(c);
    else respond(c, 404, "application/json; charset=utf-8", "{\"error\":{\"code\":404,\"message\":\"File Not Found\",\"type\":\"not_found_error\"}}");
}

static size_t content_length(const char *head, const char *end) {
    for (const char *line = head; line < end; line = strstr(line, "\r\n") + 2)
        if (!strncasecmp(line, "content-length:", 15)) return strtoul(line + 15, NULL, 10);
    return 0;
}

static bool asks_close(const char *head, const char *end) {
    for (const char *line = head; line < end; line = strstr(line, "\r\n") + 2)
        if (!strncasecmp(line, "connection: close", 17)) return true;
    return false;
}

/* One request, if it is whole. What is pipelined waits for the end of a stream. */
static void handle_input(struct conn *c) {
    c->in[c->in_len] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return;
    size_t body_len = content_length(c->in, end + 2), whole = (size_t)(end + 4 - c->in) + body_len;
    if (whole > BODY_LIMIT) return drop(c);
    if (c->in_len < whole) return;
    char kept = c->in[whole], *path = strchr(c->in, ' ');
    c->in[whole] = 0;
    c->wants_close = asks_close(c->in, end + 2);
    char *request = c->in;
    size_t rest = c->in_len - whole;
    int fd = c->fd;
    c->in = room(NULL, c->in_room);
    request[whole] = kept;
    memcpy(c->in, request + whole, rest);
    c->in_len = rest;
    request[whole] = 0;
    if (path) route(c, path + 1, end + 4);
    free(request);
    if (conns[fd] == c && rest && !c->streaming) handle_input(c);
}

static void readable(struct conn *c) {
    if (c->in_len + 4096 > c->in_room) c->in = room(c->in, c->in_room = c->in_room * 2 + 8192);
    ssize_t n = recv(c->fd, c->in + c->in_len, c->in_room - c->in_len - 1, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return drop(c);
    if (n < 0) return;
    c->in_len += (size_t)n;
    if (!c->streaming) handle_input(c);
}

static void take_connections(void) {
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = calloc(1, sizeof *c);
        if (!c) die("memory");
        c->fd = fd;
        c->heap_at = -1;
        conns[fd] = c;
        watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP);
    }
}

/* -- start ----------------------------------------------------------------------------------------------------- */
static double setting(const char *name, double otherwise) {
    const char *value = getenv(name);
    return value && *value ? atof(value) : otherwise;
}

static void listen_on(const char *host, int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t len = sizeof a;
    int one = 1;
    if (inet_pton(AF_INET, strcmp(host, "localhost") ? host : "127.0.0.1", &a.sin_addr) != 1) die("--host");
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listen_fd, (struct sockaddr *)&a, sizeof a) < 0) die("bind");
    if (listen(listen_fd, 4096) < 0) die("listen");
    getsockname(listen_fd, (struct sockaddr *)&a, &len);
    fprintf(stderr, "main: server is listening on http://%s:%d\n", host, ntohs(a.sin_port));
}

static void serve(void) {
    struct epoll_event events[MAX_EVENTS], e = {.events = EPOLLIN, .data.fd = listen_fd};
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &e) < 0) die("epoll");
    for (;;) {
        uint64_t now = now_ns();
        while (heap_len && heap[0]->due_ns <= now) tick(heap[0], now);
        uint64_t wait = heap_len ? heap[0]->due_ns - now : 0;
        struct timespec t = {(time_t)(wait / 1000000000ull), (long)(wait % 1000000000ull)};
        int n = epoll_pwait2(epoll_fd, events, MAX_EVENTS, heap_len ? &t : NULL, NULL);
        if (n < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listen_fd) take_connections();
            else if (conns[fd] && events[i].events & (EPOLLERR | EPOLLHUP)) drop(conns[fd]);
            else if (conns[fd] && (!(events[i].events & EPOLLOUT) || put_rest(conns[fd])) &&
                     events[i].events & (EPOLLIN | EPOLLRDHUP)) readable(conns[fd]);
        }
    }
}

int main(int argc, char **argv) {
    const char *host = "127.0.0.1";
    int port = 8080;
    for (int i = 1; i < argc; i++) {
        const char *flag = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(flag, "--version")) return fprintf(stderr, "version: 11434 (fake)\nbuilt with cc for the overhead bench\n"), 0;
        if (!strcmp(flag, "--list-devices")) return printf("Available devices:\n"), 0;
        if (!strcmp(flag, "--host")) host = value;
        if (!strcmp(flag, "--port")) port = atoi(value);
        if (!strcmp(flag, "--alias") || !strcmp(flag, "-a")) alias = value;
        if (!strcmp(flag, "--model") || !strcmp(flag, "-m")) model_path = value;
        if (!strcmp(flag, "--ctx-size") || !strcmp(flag, "-c")) context = (uint32_t)atoi(value);
        if (!strcmp(flag, "--parallel") || !strcmp(flag, "-np")) parallel = atoi(value) > 0 ? (uint32_t)atoi(value) : 1;
    }
    struct rlimit files = {MAX_FD, MAX_FD};
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1000);
    period_ns = (uint64_t)(1e9 / setting("FAKE_RATE", 50));
    if (!period_ns) period_ns = 1;
    default_chunks = (uint32_t)setting("FAKE_CHUNKS", 400);
    prefill_ns = (uint64_t)(setting("FAKE_PREFILL_MS", 0) * 1e6);
    close_after_stream = setting("FAKE_CLOSE", 0) != 0;
    random_state ^= now_ns();
    listen_on(host, port);
    serve();
}
