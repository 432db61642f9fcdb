/* A TCP echo in C, for many callers at once: accept, poll, recv, send. preview1 has no call that opens a socket, so it serves on that
 * of its container's first declared port, which it is given. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 256

/* The first of COPEPOD_LISTEN_FDS, which is name=number,name=number. */
static int given(void) {
  const char *given = getenv("COPEPOD_LISTEN_FDS");
  const char *number = given ? strchr(given, '=') : NULL;
  return number ? atoi(number + 1) : -1;
}

/* Sends back what has come; 0 once the caller is gone. */
static int echo(int fd) {
  char buffer[4096];
  ssize_t length = recv(fd, buffer, sizeof buffer, 0);
  if (length < 0) return errno == EAGAIN;
  for (ssize_t sent = 0; sent < length;) {
    ssize_t more = send(fd, buffer + sent, (size_t)(length - sent), 0);
    if (more < 0 && errno != EAGAIN) return 0;
    if (more > 0) sent += more;
  }
  return length > 0;
}

int main(void) {
  struct pollfd fds[MOST] = {{.fd = given(), .events = POLLIN}};
  nfds_t count = 1;
  if (fds[0].fd < 0) {
    fprintf(stderr, "no socket was given: declare a port of the container\n");
    return 1;
  }
  printf("serving on descriptor %d\n", fds[0].fd);
  fflush(stdout);
  for (;;) {
    if (poll(fds, count, -1) < 0) {
      perror("poll");
      return 1;
    }
    for (nfds_t i = count; i-- > 1;) {
      if (fds[i].revents == 0 || echo(fds[i].fd)) continue;
      close(fds[i].fd);
      fds[i] = fds[--count];
    }
    if (fds[0].revents && count < MOST) {
      int caller = accept(fds[0].fd, NULL, NULL);
      if (caller < 0) continue;
      fcntl(caller, F_SETFL, O_NONBLOCK);
      fds[count++] = (struct pollfd){.fd = caller, .events = POLLIN};
    }
  }
}
