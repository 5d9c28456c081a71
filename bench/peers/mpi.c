/* All-reduces over MPI, for Open MPI and MPICH alike. */
#include <mpi.h>
#include <string.h>

#include "ladder.h"

int main(int argc, char **argv) {
  int rank, ranks;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  size_t last = argc > 1 ? strtoull(argv[1], NULL, 10) : LAST_BYTES;
  float *buffer = aligned_alloc(4096, LAST_BYTES);
  if (!buffer) MPI_Abort(MPI_COMM_WORLD, 1);
  for (size_t bytes = FIRST_BYTES; bytes <= last; bytes *= FACTOR) {
    size_t count = bytes / sizeof *buffer, calls = iterations(bytes);
    double *own = malloc(calls * sizeof *own), *slowest = malloc(calls * sizeof *own);
    fill(buffer, count, rank);
    MPI_Allreduce(MPI_IN_PLACE, buffer, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    unsigned long errors = wrong(buffer, count, ranks), all_errors = 0;
    memset(buffer, 0, bytes);
    for (size_t call = 0; call < calls / 10; call++)
      MPI_Allreduce(MPI_IN_PLACE, buffer, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    for (size_t call = 0; call < calls; call++) {
      double began = now_us();
      MPI_Allreduce(MPI_IN_PLACE, buffer, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
      own[call] = now_us() - began;
    }
    MPI_Reduce(own, slowest, (int)calls, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    MPI_Reduce(&errors, &all_errors, 1, MPI_UNSIGNED_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) print_row(bytes, slowest, calls, all_errors);
    free(own);
    free(slowest);
  }
  MPI_Finalize();
  return 0;
}
