/* The least that a client takes which reads every event when it arrives: epoll_wait, recv, clock_gettime, and nothing
 * with what came. A closed loop like that of the clients beside it.
 *
 *     client_floor PORT STREAMS REQUESTS RESULT
 *
 * RESULT gets CPU and wall seconds, and each request's milliseconds between two reads under "tpots_ms". */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FDS = 65536, MOST_EVENTS = 64 };
static const char request[] = "POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
static char buffer[65536];
static long first_ns[MOST_FDS], last_ns[MOST_FDS], reads[MOST_FDS];

static long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static double cpu_s(void) {
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return used.tv_sec + used.tv_nsec / 1e9;
}

static void open_stream(int epoll, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (fd < 0 || fd >= MOST_FDS || connect(fd, (void *)&address, sizeof address) ||
        send(fd, request, sizeof request - 1, 0) != sizeof request - 1) {
        perror("floor");
        exit(1);
    }
    reads[fd] = 0;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int main(int count, char **arguments) {
    if (count != 5) return 2;
    int port = atoi(arguments[1]), streams = atoi(arguments[2]), left = atoi(arguments[3]), epoll = epoll_create1(0);
    FILE *result = fopen(arguments[4], "w");
    struct epoll_event events[MOST_EVENTS];
    long start_ns = now_ns();
    double start_cpu_s = cpu_s();
    int unopened = left;
    const char *comma = "";
    fprintf(result, "{\"tpots_ms\": [");
    while (left) {
        for (int i = 0; i < 2 && unopened && left - unopened < streams; i++, unopened--) open_stream(epoll, port);
        int wait_ms = unopened && left - unopened < streams ? 0 : -1;
        int ready = epoll_wait(epoll, events, MOST_EVENTS, wait_ms);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) > 0) {
                last_ns[fd] = now_ns();
                if (!reads[fd]++) first_ns[fd] = last_ns[fd];
            } else {
                close(fd);
                left--;
                double ms = reads[fd] > 1 ? (last_ns[fd] - first_ns[fd]) / 1e6 / (reads[fd] - 1) : 0;
                fprintf(result, "%s%f", comma, ms);
                comma = ", ";
            }
        }
    }
    fprintf(result, "], \"cpu_s\": %f, \"wall_s\": %f}\n", cpu_s() - start_cpu_s, (now_ns() - start_ns) / 1e9);
    return fclose(result) != 0;
}
