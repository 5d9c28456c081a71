// All-reduces over Gloo's TCP transport, by its ring.
// Usage: gloo RANK RANKS FOLDER [LAST_BYTES]; FOLDER is empty and shared by the ranks.
#include <gloo/allreduce.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "ladder.h"

template <typename T>
static void all_reduce(const std::shared_ptr<gloo::Context> &context, T *data, size_t count,
                       void (*combine)(void *, const void *, const void *, size_t)) {
  gloo::AllreduceOptions options(context);
  options.setAlgorithm(gloo::AllreduceOptions::Algorithm::RING);
  options.setOutput(data, count);
  options.setReduceFunction(combine);
  gloo::allreduce(options);
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  int rank = atoi(argv[1]), ranks = atoi(argv[2]);
  size_t last = argc > 4 ? strtoull(argv[4], nullptr, 10) : (size_t)LAST_BYTES;
  gloo::transport::tcp::attr where;
  where.hostname = "127.0.0.1";
  auto device = gloo::transport::tcp::CreateDevice(where);
  auto store = gloo::rendezvous::FileStore(argv[3]);
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, ranks);
  context->connectFullMesh(store, device);
  std::vector<float> buffer(LAST_BYTES / sizeof(float));
  for (size_t bytes = FIRST_BYTES; bytes <= last; bytes *= FACTOR) {
    size_t count = bytes / sizeof(float), calls = iterations(bytes);
    std::vector<double> times(calls);
    auto call = [&] { all_reduce<float>(context, buffer.data(), count, &gloo::sum<float>); };
    fill(buffer.data(), count, rank);
    call();
    int64_t errors = (int64_t)wrong(buffer.data(), count, ranks);
    memset(buffer.data(), 0, bytes);
    for (size_t i = 0; i < calls / 10; i++) call();
    for (size_t i = 0; i < calls; i++) {
      double began = now_us();
      call();
      times[i] = now_us() - began;
    }
    all_reduce<double>(context, times.data(), calls, &gloo::max<double>);
    all_reduce<int64_t>(context, &errors, 1, &gloo::sum<int64_t>);
    if (rank == 0) print_row(bytes, times.data(), calls, (size_t)errors);
  }
  return 0;
}
