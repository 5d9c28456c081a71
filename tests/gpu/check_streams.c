// Whether streams and events are asynchronous, and memory is what it should be.
#include "check.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

// Holds up a stream until a test lets go.
static void gate(void *open) {
    while (!atomic_load((_Atomic bool *)open)) usleep(50);
}

static void *in_thread(void *context) {
    _Atomic bool open = false;
    CUevent event;
    CUDA(cuCtxSetCurrent(context));
    CUDA(cuEventCreate(&event, 2));
    CUDA(cuLaunchHostFunc(CU_STREAM_PER_THREAD, gate, (void *)&open));
    CUDA(cuEventRecord(event, CU_STREAM_PER_THREAD));
    // The other thread's stream of this name is another one.
    meet();
    CHECK(cuEventQuery(event) == CUDA_ERROR_NOT_READY);
    atomic_store(&open, true);
    CUDA(cuEventSynchronize(event));
    CUDA(cuEventDestroy_v2(event));
    return NULL;
}

void check_streams(void) {
    use_device(0);
    CUstream other;
    CUevent before, after, there, timeless;
    CUDA(cuStreamCreate(&other, 1));
    CUDA(cuEventCreate(&before, 0));
    CUDA(cuEventCreate(&after, 0));
    CUDA(cuEventCreate(&there, 0));
    CUDA(cuEventCreate(&timeless, 2));
    float time;
    CUDA(cuEventQuery(before));
    CHECK(cuEventElapsedTime_v2(&time, before, after) == CUDA_ERROR_INVALID_HANDLE);

    _Atomic bool open = false;
    CUDA(cuEventRecord(before, stream));
    CUDA(cuLaunchHostFunc(stream, gate, (void *)&open));
    CUDA(cuEventRecord(after, stream));
    // What waits for the held up one waits too, all others do not.
    CUDA(cuStreamWaitEvent(other, after, 0));
    CUDA(cuEventRecord(there, other));
    CUDA(cuEventSynchronize(before));
    CHECK(cuStreamQuery(stream) == CUDA_ERROR_NOT_READY);
    CHECK(cuEventQuery(after) == CUDA_ERROR_NOT_READY);
    CHECK(cuEventQuery(there) == CUDA_ERROR_NOT_READY);
    CHECK(cuEventElapsedTime_v2(&time, before, after) == CUDA_ERROR_NOT_READY);
    CUDA(cuStreamSynchronize(NULL));
    // Page-locked memory is copied in its turn, any other at once.
    char *locked, pageable[4] = "abc", back[4];
    CUdeviceptr a, b;
    CUDA(cuMemHostAlloc((void **)&locked, 4, 0));
    CUDA(cuMemAllocAsync(&a, 4, stream));
    CUDA(cuMemAllocAsync(&b, 4, stream));
    memcpy(locked, "xyz", 4);
    CUDA(cuMemcpyHtoDAsync_v2(a, locked, 4, stream));
    CUDA(cuMemcpyHtoDAsync_v2(b, pageable, 4, stream));
    memcpy(locked, "uvw", 4);
    memcpy(pageable, "def", 4);
    atomic_store(&open, true);
    CUDA(cuMemcpyDtoHAsync_v2(back, a, 4, stream));
    CHECK(strcmp(back, "uvw") == 0);
    CUDA(cuMemcpyDtoHAsync_v2(back, b, 4, stream));
    CHECK(strcmp(back, "abc") == 0);
    CUDA(cuEventSynchronize(there));
    CUDA(cuStreamQuery(other));
    CUDA(cuEventElapsedTime_v2(&time, before, there));
    CHECK(time > 0);
    CUDA(cuEventRecord(timeless, stream));
    CUDA(cuEventSynchronize(timeless));
    CHECK(cuEventElapsedTime_v2(&time, before, timeless) == CUDA_ERROR_INVALID_HANDLE);
    // Who waits for an event waits for what was recorded then.
    atomic_store(&open, false);
    CUDA(cuEventRecord(after, other));
    CUDA(cuLaunchHostFunc(other, gate, (void *)&open));
    CUDA(cuStreamWaitEvent(stream, after, 0));
    CUDA(cuEventRecord(after, other));
    CUDA(cuStreamSynchronize(stream));
    CHECK(cuEventQuery(after) == CUDA_ERROR_NOT_READY);
    // A stream that is destroyed still does what it was given.
    CUDA(cuMemsetD8Async(a, 7, 4, other));
    CUDA(cuEventRecord(after, other));
    CUDA(cuStreamDestroy_v2(other));
    CHECK(cuStreamQuery(other) == CUDA_ERROR_INVALID_HANDLE);
    atomic_store(&open, true);
    CUDA(cuEventSynchronize(after));
    CUDA(cuMemcpyDtoH_v2(back, a, 4));
    CHECK(back[0] == 7 && back[3] == 7);
    CUDA(cuMemFreeAsync(a, stream));
    CUDA(cuMemFree_v2(b));
    CUDA(cuMemFreeHost(locked));

    CUcontext context;
    CUDA(cuDevicePrimaryCtxRetain(&context, 0));
    pthread_t thread;
    my_ranks = 2;
    CHECK(pthread_create(&thread, NULL, in_thread, context) == 0);
    CUDA(cuStreamSynchronize(CU_STREAM_PER_THREAD));
    meet();
    pthread_join(thread, NULL);
    CUDA(cuCtxSynchronize());
}

void check_memory(void) {
    use_device(0);
    size_t available, total, left;
    CUdeviceptr memory, more;
    char host[16] = "";
    CUDA(cuMemGetInfo_v2(&available, &total));
    CHECK(available == total);
    CUDA(cuMemAlloc_v2(&memory, 1000));
    CHECK(memory % 256 == 0);
    CUDA(cuMemGetInfo_v2(&left, &total));
    CHECK(left == available - 1000);
    CHECK(cuMemAlloc_v2(&more, total) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(cuMemAlloc_v2(&more, 0) == CUDA_ERROR_INVALID_VALUE);
    // Only what was allocated can be copied to.
    CHECK(cuMemcpyHtoD_v2(memory + 990, host, 16) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyHtoD_v2((CUdeviceptr)(uintptr_t)host, host, 16) == CUDA_ERROR_INVALID_VALUE);
    CUDA(cuMemFree_v2(memory));
    CHECK(cuMemFree_v2(memory) == CUDA_ERROR_INVALID_VALUE);
    CUDA(cuMemGetInfo_v2(&left, &total));
    CHECK(left == total);
    CHECK(cuMemFree_v2((CUdeviceptr)(uintptr_t)host) == CUDA_ERROR_INVALID_VALUE);
}

// One rank for each setting: a process reads it once.
void check_visible(void) {
    static const struct {
        const char *visible, *devices, *init;
        int result, count;
        const char *first;
    } cases[] = {
        {NULL, "3", NULL, CUDA_SUCCESS, 3, "0000:01:00.0"},
        {"2,0", "3", NULL, CUDA_SUCCESS, 2, "0000:03:00.0"},
        {"1,7,0", "3", NULL, CUDA_SUCCESS, 1, "0000:02:00.0"},
        {"1,x", "3", NULL, CUDA_SUCCESS, 1, "0000:02:00.0"},
        {"", "3", NULL, CUDA_ERROR_NO_DEVICE, 0, NULL},
        {"-1,0", "3", NULL, CUDA_ERROR_NO_DEVICE, 0, NULL},
        {NULL, "0", NULL, CUDA_ERROR_NO_DEVICE, 0, NULL},
        {NULL, "1", "803", 803, 0, NULL},
    };
    CHECK(my_ranks == sizeof cases / sizeof *cases);
    setenv("FAKE_CUDA_DEVICES", cases[my_rank].devices, 1);
    unsetenv("CUDA_VISIBLE_DEVICES");
    if (cases[my_rank].visible != NULL) setenv("CUDA_VISIBLE_DEVICES", cases[my_rank].visible, 1);
    if (cases[my_rank].init != NULL) setenv("FAKE_CUDA_INIT", cases[my_rank].init, 1);
    int count;
    CHECK(cuDeviceGetCount(&count) == CUDA_ERROR_NOT_INITIALIZED);
    CHECK(cuInit(0) == cases[my_rank].result);
    const char *name;
    CUDA(cuGetErrorName(cases[my_rank].result, &name));
    if (cases[my_rank].result != CUDA_SUCCESS) return;
    CUDA(cuDeviceGetCount(&count));
    CHECK(count == cases[my_rank].count);
    char bus[16];
    CUDA(cuDeviceGetPCIBusId(bus, sizeof bus, 0));
    CHECK(strcmp(bus, cases[my_rank].first) == 0);
}
