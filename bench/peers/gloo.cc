// All-reduces over Gloo's TCP transport, by its ring, which is also what PyTorch takes.
// Usage: gloo RANK RANKS FOLDER [ADDRESS]; FOLDER is empty and shared by the ranks.
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
  bind_to_core(rank);
  gloo::transport::tcp::attr where;
  where.hostname = argc > 4 ? argv[4] : "127.0.0.1";
  auto device = gloo::transport::tcp::CreateDevice(where);
  auto store = gloo::rendezvous::FileStore(argv[3]);
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, ranks);
  context->connectFullMesh(store, device);
  size_t last = last_bytes();
  std::vector<float> buffer(last / sizeof(float));
  for (size_t bytes = first_bytes(); bytes <= last; bytes *= FACTOR) {
    size_t count = bytes / sizeof(float);
    auto call = [&] { all_reduce<float>(context, buffer.data(), count, &gloo::sum<float>); };
    fill(buffer.data(), count, rank);
    call();
    int64_t errors = (int64_t)wrong(buffer.data(), count, ranks);
    memset(buffer.data(), 0, bytes);
    size_t batch = 1;
    double took;
    for (;; batch *= 2) {
      double began = now_us();
      for (size_t i = 0; i < batch; i++) call();
      // On rank 0's clock.
      took = rank == 0 ? now_us() - began : 0;
      all_reduce<double>(context, &took, 1, &gloo::sum<double>);
      if (is_warm(bytes, batch, took)) break;
    }
    size_t calls = timed_calls(bytes, batch, took);
    std::vector<double> times(calls);
    call();
    double processor = processor_us();
    for (size_t i = 0; i < calls; i++) {
      double began = now_us();
      call();
      times[i] = now_us() - began;
    }
    processor = processor_us() - processor;
    all_reduce<double>(context, times.data(), calls, &gloo::max<double>);
    all_reduce<int64_t>(context, &errors, 1, &gloo::sum<int64_t>);
    all_reduce<double>(context, &processor, 1, &gloo::sum<double>);
    if (rank == 0) print_row(bytes, times.data(), calls, (size_t)errors, processor);
  }
  return 0;
}
