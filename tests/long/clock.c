/* Preloaded into a server: its wall clock is off by the seconds that stand in the file $CLOCK_OFFSET_FILE. No allocation, no dlsym,
   so that it works under any allocator. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
  static int file = -1;
  char text[32] = {0};
  if (file < 0) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    if (!path || (file = open(path, O_RDONLY | O_CLOEXEC)) < 0) return 0;
  }
  return pread(file, text, sizeof text - 1, 0) > 0 ? strtol(text, NULL, 10) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = (int)syscall(SYS_clock_gettime, clock, at);
  if (!failed && clock == CLOCK_REALTIME) at->tv_sec += offset();
  return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
  struct timespec precise;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &precise);
  at->tv_sec = precise.tv_sec;
  at->tv_usec = precise.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (at) *at = precise.tv_sec;
  return precise.tv_sec;
}
