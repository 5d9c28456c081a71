// That the mistakes of a caller are found.
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static ncclComm_t comm;
static char *memory;

static ncclResult_t sum(void) {
    return ncclAllReduce(memory, memory, 4, ncclFloat32, ncclSum, comm, stream);
}

static void after_destroy(void) {
    NCCL(ncclCommDestroy(comm));
    sum();
}

static void after_abort(void) {
    ncclResult_t state;
    NCCL(ncclCommAbort(comm));
    ncclCommGetAsyncError(comm, &state);
}

static void twice(void) {
    NCCL(ncclCommAbort(comm));
    ncclCommAbort(comm);
}

static void unknown(void) { ncclCommAbort((ncclComm_t)memory); }

static void gate(void *open) {
    while (!atomic_load((_Atomic bool *)open)) usleep(50);
}

static void outstanding(void) {
    static _Atomic bool open;
    CUDA(cuLaunchHostFunc(stream, gate, (void *)&open));
    NCCL(sum());
    ncclCommDestroy(comm);
}

static void *split_alone(void *argument) {
    static ncclComm_t child;
    ncclCommSplit(comm, 0, 0, &child, NULL);
    return argument;
}

static void while_inside(void) {
    pthread_t thread;
    CUcontext context;
    setenv("FAKE_NCCL_SPLIT_HANGS", "1", 1);
    CUDA(cuDevicePrimaryCtxRetain(&context, 0));
    pthread_create(&thread, NULL, split_alone, NULL);
    usleep(20000);
    ncclCommAbort(comm);
}

static void other_device(void) {
    CUcontext context;
    CUDA(cuDevicePrimaryCtxRetain(&context, 1));
    CUDA(cuCtxSetCurrent(context));
    sum();
}

static void no_device(void) {
    CUDA(cuCtxSetCurrent(NULL));
    sum();
}

static void too_long(void) {
    ncclAllReduce(memory, memory, 5, ncclFloat32, ncclSum, comm, stream);
}

static void host_memory(void) {
    static float value;
    ncclAllReduce(&value, &value, 1, ncclFloat32, ncclSum, comm, stream);
}

static void overlapping(void) {
    ncclAllReduce(memory, memory + 4, 2, ncclFloat32, ncclSum, comm, stream);
}

static void freed_early(void) {
    static _Atomic bool open;
    CUstream other;
    CUDA(cuStreamCreate(&other, 1));
    CUDA(cuLaunchHostFunc(stream, gate, (void *)&open));
    NCCL(sum());
    CUDA(cuMemFreeAsync((CUdeviceptr)(uintptr_t)memory, other));
    CUDA(cuStreamSynchronize(other));
    atomic_store(&open, true);
    cuStreamSynchronize(stream);
}

static void mismatch(void) {
    size_t count = my_rank == 0 ? 4 : 3;
    NCCL(ncclAllReduce(memory, memory, count, ncclFloat32, ncclSum, comm, stream));
    cuStreamSynchronize(stream);
}

static const struct {
    void (*make)(void);
    const char *message;
} mistakes[] = {
    {after_destroy, "ncclAllReduce after ncclCommDestroy"},
    {after_abort, "ncclCommGetAsyncError after ncclCommAbort"},
    {twice, "ncclCommAbort after ncclCommAbort"},
    {unknown, "is no communicator"},
    {outstanding, "ncclCommDestroy with 1 calls outstanding"},
    {while_inside, "ncclCommAbort while another thread is inside a call"},
    {other_device, "device is 0, but that of this thread's context is 1"},
    {no_device, "device is 0, but that of this thread's context is -1"},
    {too_long, "20 bytes at"},
    {host_memory, "are not memory of device 0"},
    {overlapping, "the buffers overlap"},
    {freed_early, "was freed before its turn came"},
};

// In a process of its own, which ends by it.
static void expect(void (*make)(void), const char *message) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t process = fork();
    if (process == 0) {
        dup2(ends[1], 2);
        use_device(my_rank);
        float value[4] = {1, 1, 1, 1};
        memory = upload(value, sizeof value);
        comm = connect_world(1, 0);
        make();
        _exit(0);
    }
    close(ends[1]);
    char said[512] = "";
    size_t length = 0;
    ssize_t more;
    while ((more = read(ends[0], said + length, sizeof said - length - 1)) > 0) {
        length += (size_t)more;
    }
    close(ends[0]);
    int status;
    CHECK(waitpid(process, &status, 0) == process);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || strstr(said, "fake ") != said ||
        strstr(said, message) == NULL) {
        fprintf(stderr, "not `%s`, but status %x and `%s`\n", message, status, said);
        exit(1);
    }
}

// One rank.
void check_mistakes(void) {
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        expect(mistakes[i].make, mistakes[i].message);
    }
}

// Two ranks whose calls do not belong together: both say so.
void check_mismatch(void) { expect(mismatch, "calls AllReduce (count"); }
