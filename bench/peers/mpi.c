/* All-reduces over MPI, for Open MPI and MPICH alike. */
#define _GNU_SOURCE
#include <mpi.h>
#include <string.h>

#include "ladder.h"

static void all_reduce(float *buffer, size_t count) {
  MPI_Allreduce(MPI_IN_PLACE, buffer, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

int main(int argc, char **argv) {
  int rank, ranks;
  /* What the launchers of Open MPI and of MPICH say before there is a world. */
  const char *early = getenv("OMPI_COMM_WORLD_RANK");
  if (!early) early = getenv("PMI_RANK");
  if (early) bind_to_core(atoi(early));
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  size_t last = last_bytes();
  float *buffer = aligned_alloc(4096, (last + 4095) / 4096 * 4096);
  if (!buffer) MPI_Abort(MPI_COMM_WORLD, 1);
  for (size_t bytes = first_bytes(); bytes <= last; bytes *= FACTOR) {
    size_t count = bytes / sizeof *buffer;
    fill(buffer, count, rank);
    all_reduce(buffer, count);
    unsigned long errors = wrong(buffer, count, ranks), all_errors = 0;
    memset(buffer, 0, bytes);
    size_t batch = 1;
    double took;
    for (;; batch *= 2) {
      double began = now_us();
      for (size_t call = 0; call < batch; call++) all_reduce(buffer, count);
      took = now_us() - began;
      MPI_Bcast(&took, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
      if (is_warm(bytes, batch, took)) break;
    }
    size_t calls = timed_calls(bytes, batch, took);
    double *own = malloc(calls * sizeof *own), *slowest = malloc(calls * sizeof *own);
    all_reduce(buffer, count);
    double processor = processor_us(), all_processor = 0;
    for (size_t call = 0; call < calls; call++) {
      double began = now_us();
      all_reduce(buffer, count);
      own[call] = now_us() - began;
    }
    processor = processor_us() - processor;
    MPI_Reduce(own, slowest, (int)calls, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    MPI_Reduce(&errors, &all_errors, 1, MPI_UNSIGNED_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Reduce(&processor, &all_processor, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) print_row(bytes, slowest, calls, all_errors, all_processor);
    free(own);
    free(slowest);
  }
  MPI_Finalize();
  return 0;
}
