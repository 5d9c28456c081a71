/* What every contender does alike: the sizes, how often each, what is checked and what is printed.
   The same rules stand in bench/src/ladder.rs, with their reasons. */
#ifndef LADDER_H
#define LADDER_H

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

enum { FACTOR = 4, LEAST_CALLS = 10, MOST_CALLS = 4000, WARM_UP = 10 };
#define BYTES_A_SIZE ((size_t)128 << 20)

/* What the caller asks for, in the environment: it reaches ranks under every launcher. */
static double asked(const char *name) {
  const char *text = getenv(name);
  if (!text) {
    fprintf(stderr, "error: %s is not set\n", name);
    exit(2);
  }
  return atof(text);
}

static size_t first_bytes(void) { return (size_t)asked("PEERS_FIRST"); }
static size_t last_bytes(void) { return (size_t)asked("PEERS_LAST"); }
static double budget_us(void) { return asked("PEERS_BUDGET_US"); }

/* With PEERS_BIND, this process to one core of those that it may use; before it has threads. */
static void bind_to_core(int rank) {
  cpu_set_t allowed, own;
  if (!asked("PEERS_BIND") || sched_getaffinity(0, sizeof allowed, &allowed)) return;
  int skip = rank % CPU_COUNT(&allowed), core = 0;
  while (!CPU_ISSET(core, &allowed) || skip--) core++;
  CPU_ZERO(&own);
  CPU_SET(core, &own);
  sched_setaffinity(0, sizeof own, &own);
}

static size_t most_calls(size_t bytes) {
  size_t count = BYTES_A_SIZE / bytes;
  return count < LEAST_CALLS ? LEAST_CALLS : count > MOST_CALLS ? MOST_CALLS : count;
}

/* Whether the last batch of warm-up calls was long enough; took: on rank 0's clock. */
static int is_warm(size_t bytes, size_t batch, double took) {
  return took * WARM_UP >= budget_us() || batch * WARM_UP >= most_calls(bytes);
}

static size_t timed_calls(size_t bytes, size_t batch, double took) {
  double fit = budget_us() * (double)batch / took;
  size_t most = most_calls(bytes);
  return fit < LEAST_CALLS ? LEAST_CALLS : fit > (double)most ? most : (size_t)fit;
}

static double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e6 + time.tv_nsec * 1e-3;
}

/* Of all threads of this process. */
static double processor_us(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 +
         (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

/* Rank r gives (r + 1) times (i mod 7): small integers, so that any order of adding is exact. */
static void fill(float *buffer, size_t count, int rank) {
  for (size_t i = 0; i < count; i++) buffer[i] = (float)(rank + 1) * (float)(i % 7);
}

static size_t wrong(const float *buffer, size_t count, int ranks) {
  float all = (float)ranks * (float)(ranks + 1) / 2;
  size_t differ = 0;
  for (size_t i = 0; i < count; i++) differ += buffer[i] != all * (float)(i % 7);
  return differ;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* times: of each call the slowest rank's; processor: of all timed calls and ranks, in microseconds. */
static void print_row(size_t bytes, double *times, size_t count, size_t errors, double processor) {
  qsort(times, count, sizeof *times, ascending);
  printf("row %zu %zu %.3f %.3f %.3f %zu %.3f\n", bytes, count, times[count / 2], times[0],
         times[count * 95 / 100], errors, processor / (double)count);
  fflush(stdout);
}

#endif
