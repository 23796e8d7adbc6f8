/* The load: N streams of chat completions, always N at once, and what each of them saw.
 *
 * One thread, epoll. HTTP is parsed just enough to be right: status, transfer encoding, chunk sizes; then SSE events
 * are found by their blank line. An event counts when its bytes are read; events of one read have one time.
 *
 * Two ways. Timed (default): streams start spread over the warm-up, the first answer of each has a random length so
 * that ends are spread too, a new request follows each end; what falls into the window of --seconds is counted, and
 * the streams go on after it. Counted (--requests M): every stream makes M requests, all of it is counted. In both the
 * result comes when standard input closes, so that whoever started this can read the process's counters before.
 *
 * Marks on standard error: "window start", "window stop". The result: one JSON line on standard output.
 * Chunks of bench/native/engine.c carry their number and time: order is checked and the time under way is measured.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
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

enum { READ_ROOM = 65536, TEXT_ROOM = 262144, HEAD_ROOM = 16384, MAX_EVENTS = 256 };
#define SECOND 1000000000ull
#define STALL_NS (30 * SECOND)
#define BACK_OFF_NS (SECOND / 10)

enum state { IDLE, CONNECTING, HEAD, BODY };
enum body { SIZED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, TO_CLOSE };

struct stream {
    int fd;
    enum state state;
    enum body body;
    bool sse, done_seen, close_after, reused, line_empty;
    int status, number;
    uint64_t start_at, asked_at, first_at, last_at;
    uint64_t left; /* bytes of this chunk or body */
    uint32_t expected, limit;
    long requests;
    size_t head_len, text_len;
    char head[HEAD_ROOM];
    char *text; /* decoded bytes that are not yet a whole event */
};

struct series {
    float *ms;
    size_t len, room;
};

static struct stream *streams;
static struct series first, gaps, delays;
static struct sockaddr_in address;
static int epoll_fd, stream_count = 1, finished;
static const char *host = "127.0.0.1", *path = "/v1/chat/completions", *model = "fake", *key = "", *extra = "";
static const char *prompt = "Tell a long story, number ";
static int port = 8080;
static uint32_t max_tokens = 400;
static long requests_each;
static double warm_up_s = 2, seconds = 5;
static bool counting;
static uint64_t next_start = UINT64_MAX, window_from, window_to, random_state = 2463534242u;
static uint64_t chunks, ended, reads, bytes, disordered, missing_done;
static uint64_t failed_connect, failed_status, failed_cut, failed_stall, failed_event, failed_parse;
static int bad_status;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static uint32_t random_below(uint32_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return limit ? (uint32_t)(random_state % limit) : 0;
}

static void die(const char *what) {
    fprintf(stderr, "load client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void note(struct series *s, uint64_t ns) {
    if (!counting) return;
    if (s->len == s->room) {
        s->room = s->room ? s->room * 2 : 4096;
        s->ms = realloc(s->ms, s->room * sizeof *s->ms);
        if (!s->ms) die("memory");
    }
    s->ms[s->len++] = (float)((double)ns / 1e6);
}

/* -- a stream's life ------------------------------------------------------------------------------------------- */
static void hang_up(struct stream *s) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    s->reused = false;
}

static void start_later(struct stream *s, uint64_t at) {
    s->state = IDLE;
    s->start_at = at;
    if (at < next_start) next_start = at;
}

static void failed(struct stream *s, uint64_t *counter) {
    if (counting) ++*counter;
    hang_up(s);
    s->requests++;
    if (requests_each && s->requests >= requests_each) {
        s->state = IDLE;
        s->start_at = UINT64_MAX;
        finished++;
        return;
    }
    start_later(s, now_ns() + BACK_OFF_NS);
}

static void ask(struct stream *s) {
    char body[8192], request[12288];
    int n = snprintf(body, sizeof body,
                     "{\"model\":\"%s\",\"stream\":true,\"max_tokens\":%u,%s\"messages\":[{\"role\":\"user\",\"content\":\"%s%d\"}]}",
                     model, s->limit, extra, prompt, s->number);
    int total = snprintf(request, sizeof request,
                         "POST %s HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n"
                         "%s%s%sContent-Length: %d\r\n\r\n%s",
                         path, host, port, *key ? "Authorization: Bearer " : "", key, *key ? "\r\n" : "", n, body);
    if (n >= (int)sizeof body || total >= (int)sizeof request) die("the request is too long");
    s->state = HEAD;
    s->head_len = s->text_len = 0;
    s->expected = 0;
    s->done_seen = false;
    s->first_at = 0;
    s->asked_at = s->last_at = now_ns();
    if (send(s->fd, request, (size_t)total, MSG_NOSIGNAL) != total) failed(s, &failed_cut);
}

static void dial(struct stream *s) {
    if (s->fd >= 0) {
        s->reused = true;
        ask(s);
        return;
    }
    int one = 1;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) die("socket");
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    s->state = CONNECTING;
    s->last_at = now_ns();
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = s};
    if (connect(s->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        failed(s, &failed_connect);
        return;
    }
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, s->fd, &e) < 0) die("epoll_ctl");
}

static void connected(struct stream *s) {
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error) {
        failed(s, &failed_connect);
        return;
    }
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = s};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, s->fd, &e) < 0) die("epoll_ctl");
    ask(s);
}

static void start_due(uint64_t now) {
    next_start = UINT64_MAX;
    for (int i = 0; i < stream_count; i++) {
        struct stream *s = &streams[i];
        if (s->state != IDLE || s->start_at == UINT64_MAX) continue;
        if (s->start_at <= now) dial(s);
        else if (s->start_at < next_start) next_start = s->start_at;
    }
}

static void drop_stalled(uint64_t now) {
    for (int i = 0; i < stream_count; i++)
        if (streams[i].state != IDLE && streams[i].last_at + STALL_NS < now) failed(&streams[i], &failed_stall);
}

/* The answer is over. */
static void ended_well(struct stream *s) {
    if (s->status != 200) {
        bad_status = s->status;
        if (counting) failed_status++;
    } else if (counting) {
        ended++;
        if (!s->done_seen) missing_done++;
    }
    if (s->close_after) hang_up(s);
    s->limit = max_tokens;
    s->requests++;
    s->state = IDLE;
    if (requests_each && s->requests >= requests_each) {
        s->start_at = UINT64_MAX;
        finished++;
    } else {
        start_later(s, s->status == 200 ? 0 : now_ns() + BACK_OFF_NS);
    }
}

/* -- events ---------------------------------------------------------------------------------------------------- */
static uint64_t from_hex(const char *at, int digits) {
    uint64_t value = 0;
    for (; digits--; at++) value = value << 4 | (uint64_t)(*at <= '9' ? *at - '0' : *at - 'a' + 10);
    return value;
}

static void check_marks(struct stream *s, const char *event, size_t len, uint64_t now) {
    const char *number = memmem(event, len, "\"content\":\" w", 13), *stamp = memmem(event, len, "b11434-", 7);
    if (!number || !stamp) return;
    if (number + 19 > event + len || stamp + 23 > event + len || from_hex(number + 13, 6) != s->expected++) {
        if (counting) disordered++;
        return;
    }
    uint64_t sent = from_hex(stamp + 7, 16);
    note(&delays, now > sent ? now - sent : 0);
}

static void take_event(struct stream *s, const char *event, size_t len, uint64_t now) {
    if (len < 6 || memcmp(event, "data:", 5)) return; /* a comment */
    if (memmem(event, len < 16 ? len : 16, "[DONE]", 6)) {
        s->done_seen = true;
        return;
    }
    if (memmem(event, len < 16 ? len : 16, "{\"error\"", 8)) {
        if (counting) failed_event++;
        return;
    }
    if (!s->first_at) {
        s->first_at = now;
        note(&first, now - s->asked_at);
    } else {
        note(&gaps, now - s->last_at);
    }
    s->last_at = now;
    if (counting) chunks++;
    check_marks(s, event, len, now);
}

static bool take_text(struct stream *s, const char *data, size_t len, uint64_t now) {
    if (!s->sse || s->status != 200) return true;
    if (s->text_len + len > TEXT_ROOM) return false;
    memcpy(s->text + s->text_len, data, len);
    s->text_len += len;
    char *at = s->text, *end = s->text + s->text_len, *blank;
    while ((blank = memmem(at, (size_t)(end - at), "\n\n", 2))) {
        take_event(s, at, (size_t)(blank - at), now);
        at = blank + 2;
    }
    s->text_len = (size_t)(end - at);
    memmove(s->text, at, s->text_len);
    return true;
}

/* -- HTTP ------------------------------------------------------------------------------------------------------ */
static const char *header(const char *head, const char *name) {
    const char *at = head;
    size_t len = strlen(name);
    while ((at = strstr(at, "\r\n"))) {
        at += 2;
        if (strncasecmp(at, name, len) || at[len] != ':') continue;
        for (at += len + 1; *at == ' ';) at++;
        return at;
    }
    return NULL;
}

static bool value_is(const char *value, const char *want) {
    return value && !strncasecmp(value, want, strlen(want));
}

static void take_head(struct stream *s) {
    const char *size = header(s->head, "content-length");
    s->status = atoi(s->head + 9);
    s->sse = value_is(header(s->head, "content-type"), "text/event-stream");
    s->close_after = value_is(header(s->head, "connection"), "close");
    s->state = BODY;
    s->left = size ? strtoull(size, NULL, 10) : 0;
    s->body = value_is(header(s->head, "transfer-encoding"), "chunked") ? CHUNK_SIZE : size ? SIZED : TO_CLOSE;
    s->line_empty = true;
}

enum verdict { MORE, ENDED, BROKEN };

static enum verdict take_byte(struct stream *s, char b) {
    if (s->body == CHUNK_SIZE) {
        if (b == '\n') {
            if (s->line_empty) return BROKEN;
            s->body = s->left ? CHUNK_DATA : TRAILER;
            s->line_empty = true;
            return MORE;
        }
        if (b == '\r') return MORE;
        if ((b < '0' || b > '9') && (b < 'a' || b > 'f') && (b < 'A' || b > 'F')) return BROKEN;
        s->left = s->left << 4 | from_hex((char[]){b >= 'A' && b <= 'F' ? b + 32 : b}, 1);
        s->line_empty = false;
        return s->left > (1u << 30) ? BROKEN : MORE;
    }
    if (s->body == CHUNK_END) {
        if (b == '\r') return MORE;
        if (b != '\n') return BROKEN;
        s->body = CHUNK_SIZE;
        s->left = 0;
        s->line_empty = true;
        return MORE;
    }
    if (b == '\r') return MORE; /* TRAILER */
    if (b != '\n') return s->line_empty = false, MORE;
    if (s->line_empty) return ENDED;
    return s->line_empty = true, MORE;
}

static enum verdict take_body(struct stream *s, const char *data, size_t len, uint64_t now) {
    while (len) {
        if (s->body == CHUNK_SIZE || s->body == CHUNK_END || s->body == TRAILER) {
            enum verdict v = take_byte(s, *data++);
            len--;
            if (v == ENDED) return len ? BROKEN : ENDED; /* nothing was asked for yet */
            if (v != MORE) return v;
            continue;
        }
        size_t n = s->body == TO_CLOSE || len < s->left ? len : (size_t)s->left;
        if (!take_text(s, data, n, now)) return BROKEN;
        data += n;
        len -= n;
        if (s->body == TO_CLOSE) continue;
        s->left -= n;
        if (!s->left && s->body == SIZED) return len ? BROKEN : ENDED;
        if (!s->left) s->body = CHUNK_END;
    }
    return s->body == SIZED && !s->left ? ENDED : MORE;
}

static void take_bytes(struct stream *s, char *data, size_t len) {
    uint64_t now = now_ns();
    if (s->state == IDLE) { /* nothing was asked */
        hang_up(s);
        return;
    }
    if (s->state == HEAD) {
        size_t had = s->head_len, n = len < HEAD_ROOM - 1 - had ? len : HEAD_ROOM - 1 - had;
        memcpy(s->head + had, data, n);
        s->head[s->head_len = had + n] = 0;
        char *end = strstr(s->head, "\r\n\r\n");
        if (!end) {
            if (s->head_len == HEAD_ROOM - 1) failed(s, &failed_parse);
            return;
        }
        size_t used = (size_t)(end + 4 - s->head) - had;
        end[2] = 0;
        take_head(s);
        data += used;
        len -= used;
    }
    enum verdict v = take_body(s, data, len, now);
    if (v == ENDED) ended_well(s);
    if (v == BROKEN) failed(s, &failed_parse);
}

static void peer_closed(struct stream *s) {
    if (s->state == BODY && s->body == TO_CLOSE) {
        s->close_after = true;
        ended_well(s);
    } else if (s->state == IDLE) {
        hang_up(s);
    } else if (s->state == HEAD && s->reused && !s->head_len) {
        hang_up(s); /* a kept connection that the server had closed: once more on a fresh one */
        dial(s);
    } else {
        failed(s, &failed_cut);
    }
}

static void readable(struct stream *s) {
    static char data[READ_ROOM];
    ssize_t n = recv(s->fd, data, sizeof data, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (counting) reads++, bytes += n > 0 ? (uint64_t)n : 0;
    if (n <= 0) peer_closed(s);
    else take_bytes(s, data, (size_t)n);
}

/* -- result ---------------------------------------------------------------------------------------------------- */
static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_series(const char *name, struct series *s) {
    qsort(s->ms, s->len, sizeof *s->ms, by_size);
    if (!s->len) {
        printf(",\"%s\":{\"count\":0}", name);
        return;
    }
    printf(",\"%s\":{\"count\":%zu,\"min\":%.4f,\"p50\":%.4f,\"p90\":%.4f,\"p99\":%.4f,\"max\":%.4f}", name, s->len, s->ms[0],
           s->ms[s->len / 2], s->ms[s->len * 9 / 10], s->ms[s->len * 99 / 100], s->ms[s->len - 1]);
}

static void print_result(void) {
    double elapsed = (double)(window_to - window_from) / 1e9;
    printf("{\"streams\":%d,\"seconds\":%.4f,\"chunks\":%lu,\"chunks_per_s\":%.2f,\"answers\":%lu,\"reads\":%lu,\"bytes\":%lu",
           stream_count, elapsed, chunks, (double)chunks / elapsed, ended, reads, bytes);
    printf(",\"errors\":{\"connect\":%lu,\"status\":%lu,\"cut\":%lu,\"stalled\":%lu,\"event\":%lu,\"parse\":%lu},\"bad_status\":%d",
           failed_connect, failed_status, failed_cut, failed_stall, failed_event, failed_parse, bad_status);
    printf(",\"missing_done\":%lu,\"disordered\":%lu", missing_done, disordered);
    print_series("first_ms", &first);
    print_series("gap_ms", &gaps);
    print_series("delay_ms", &delays);
    printf("}\n");
    fflush(stdout);
}

/* -- the run --------------------------------------------------------------------------------------------------- */
static void turn(uint64_t until) {
    struct epoll_event events[MAX_EVENTS];
    uint64_t now = now_ns();
    if (next_start <= now) start_due(now);
    if (next_start < until) until = next_start;
    uint64_t wait = until > now ? until - now : 0;
    struct timespec t = {(time_t)(wait / SECOND), (long)(wait % SECOND)};
    int n = epoll_pwait2(epoll_fd, events, MAX_EVENTS, &t, NULL);
    if (n < 0 && errno != EINTR) die("epoll_pwait2");
    for (int i = 0; i < n; i++) {
        struct stream *s = events[i].data.ptr;
        if (s->fd < 0) continue;
        if (s->state == CONNECTING) connected(s);
        else readable(s);
    }
}

static void run_until(uint64_t end) {
    for (uint64_t now = now_ns(), checked = now; now < end; now = now_ns()) {
        turn(end < now + SECOND ? end : now + SECOND);
        if (now - checked > SECOND) drop_stalled(checked = now);
    }
}

static void run_until_finished(void) {
    while (finished < stream_count) {
        uint64_t now = now_ns();
        turn(now + SECOND);
        drop_stalled(now);
    }
}

static bool input_closed(void) {
    struct pollfd p = {.fd = 0, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

static void open_window(void) {
    counting = true;
    window_from = now_ns();
    fprintf(stderr, "window start\n");
}

static void close_window(void) {
    counting = false;
    window_to = now_ns();
    fprintf(stderr, "window stop\n");
}

static void run_counted(void) {
    open_window();
    run_until_finished();
    close_window();
    while (!input_closed()) usleep(5000);
    print_result();
}

static void run_timed(void) {
    uint64_t begin = now_ns();
    run_until(begin + (uint64_t)(warm_up_s * 1e9));
    open_window();
    run_until(window_from + (uint64_t)(seconds * 1e9));
    close_window();
    while (!input_closed()) run_until(now_ns() + SECOND / 50);
    print_result();
}

static void make_streams(void) {
    uint64_t now = now_ns(), ramp = requests_each ? 0 : (uint64_t)(warm_up_s * 5e8);
    streams = calloc((size_t)stream_count, sizeof *streams);
    if (!streams) die("memory");
    for (int i = 0; i < stream_count; i++) {
        struct stream *s = &streams[i];
        s->fd = -1;
        s->number = i;
        s->text = malloc(TEXT_ROOM);
        if (!s->text) die("memory");
        s->limit = requests_each || stream_count == 1 ? max_tokens : 1 + random_below(max_tokens);
        start_later(s, now + ramp * (uint64_t)i / (uint64_t)stream_count);
    }
}

static void read_arguments(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *flag = argv[i], *value = argv[i + 1];
        if (!strcmp(flag, "--host")) host = value;
        else if (!strcmp(flag, "--port")) port = atoi(value);
        else if (!strcmp(flag, "--path")) path = value;
        else if (!strcmp(flag, "--model")) model = value;
        else if (!strcmp(flag, "--prompt")) prompt = value;
        else if (!strcmp(flag, "--extra")) extra = value; /* more JSON members, each with its comma after it */
        else if (!strcmp(flag, "--streams")) stream_count = atoi(value);
        else if (!strcmp(flag, "--max-tokens")) max_tokens = (uint32_t)atoi(value);
        else if (!strcmp(flag, "--requests")) requests_each = atol(value);
        else if (!strcmp(flag, "--warm-up")) warm_up_s = atof(value);
        else if (!strcmp(flag, "--seconds")) seconds = atof(value);
        else errno = EINVAL, die(flag);
    }
    if (stream_count < 1 || !max_tokens) errno = EINVAL, die("--streams, --max-tokens");
}

int main(int argc, char **argv) {
    read_arguments(argc, argv);
    if (getenv("BENCH_API_KEY")) key = getenv("BENCH_API_KEY");
    struct rlimit files = {16384, 16384};
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1000);
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) errno = EINVAL, die("--host takes an IPv4 address");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) die("epoll");
    random_state ^= now_ns();
    make_streams();
    if (requests_each) run_counted();
    else run_timed();
    return 0;
}
