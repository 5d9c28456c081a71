# A peer: PyTorch's DistributedDataParallel over Gloo, the training step of docs/benchmarks.md.
#
#   python3 ddp_gloo.py RANKS [HIDDEN LAYERS BATCH_OF_A_RANK STEPS]
#
# Debian: apt-get install --no-install-recommends python3-torch libopenblas0-pthread
import os
import sys
import time

ranks = int(sys.argv[1])
hidden, layers, batch, steps = [int(word) for word in sys.argv[2:6]] or [1024, 4, 128, 40]
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn


def work(rank, port):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten())
    width = 784
    for _ in range(layers):
        model.append(nn.Linear(width, hidden))
        model.append(nn.ReLU())
        width = hidden
    model.append(nn.Linear(width, 10))
    if ranks > 1:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.rand(batch, 1, 28, 28)
    labels = torch.randint(0, 10, (batch,))
    start = time.perf_counter()
    for step in range(steps + 5):
        if step == 5:
            if ranks > 1:
                dist.barrier()
            start = time.perf_counter()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
    if ranks > 1:
        dist.barrier()
    seconds = time.perf_counter() - start
    if rank == 0:
        rate = ranks * batch * steps / seconds
        print(f"torch {torch.__version__} gloo, {ranks} ranks: {rate:.0f} images/s, "
              f"{1000 * seconds / steps:.1f} ms a step")


if __name__ == "__main__":
    if ranks == 1:
        work(0, 0)
    else:
        mp.spawn(work, (29555,), nprocs=ranks)
