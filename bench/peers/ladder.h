/* What every contender does alike: the sizes, how often each, what is checked and what is printed.
   The same rules stand in allfold.rs. */
#ifndef LADDER_H
#define LADDER_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { FIRST_BYTES = 4, LAST_BYTES = 64 << 20, FACTOR = 4 };

static size_t iterations(size_t bytes) {
  size_t count = ((size_t)128 << 20) / bytes;
  return count < 20 ? 20 : count > 4000 ? 4000 : count;
}

static double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e6 + time.tv_nsec * 1e-3;
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

/* times: of each call the slowest rank's. */
static void print_row(size_t bytes, double *times, size_t count, size_t errors) {
  qsort(times, count, sizeof *times, ascending);
  printf("row %zu %zu %.3f %.3f %.3f %zu\n", bytes, count, times[count / 2], times[0],
         times[count * 95 / 100], errors);
  fflush(stdout);
}

#endif
