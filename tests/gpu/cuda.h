// What the look-alike of the CUDA driver has in common with itself, with the one of NCCL and with
// check.c. Names and numbers are the driver's own; everything else is ours.
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stdbool.h>
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct {
    char bytes[16];
} CUuuid;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_READY = 600,
};

// The two streams that nobody creates.
#define CU_STREAM_LEGACY ((CUstream)0x1)
#define CU_STREAM_PER_THREAD ((CUstream)0x2)
#define CU_EVENT_DISABLE_TIMING 2u

// A real machine has no more either.
enum { MAX_DEVICES = 16 };

struct CUctx_st {
    int device;
    int retained;
    CUstream default_stream;
};

// cuda.c

// A caller's mistake that the real driver would answer with wrong data or a fault.
_Noreturn void cuda_mistake(const char *format, ...) __attribute__((format(printf, 1, 2)));
// The context of this thread, or none.
CUcontext cuda_current(void);
CUcontext cuda_context(int device);
// Bytes of each device.
extern size_t cuda_device_memory;

// cuda_streams.c

typedef void (*cuda_job)(void *);

CUresult cuda_enqueue(CUstream stream, cuda_job job, void *argument);
// Waits for all that was enqueued until now.
CUresult cuda_wait(CUstream stream);
void cuda_wait_for_all(CUcontext context);

// For the look-alike of NCCL, which finds them by name.

// Runs `job(argument)` in the order of a stream.
EXPORT int fake_cuda_enqueue(CUstream stream, cuda_job job, void *argument);
// Whose stream it is; -1 where it is none.
EXPORT int fake_cuda_stream_device(CUstream stream);
// Whether all of this memory may be used by kernels of this device.
EXPORT int fake_cuda_holds(const void *start, size_t bytes, int device);
// The device of the calling thread's context; -1 without one.
EXPORT int fake_cuda_current_device(void);

#endif
