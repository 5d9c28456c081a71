// NCCL as a machine without a GPU can have it: what does not need a communicator.
//
// FAKE_NCCL_VERSION      what ncclGetVersion says (22809)
// FAKE_NCCL_CONNECT      eager: the first call on a communicator does not wait for the peers
// FAKE_NCCL_INIT_HANGS   1: an initialisation ends only by an abort
// FAKE_NCCL_SPLIT_HANGS  1: a split ends only by an abort
// FAKE_NCCL_MISMATCH_HANGS  1: calls that differ wait for an abort
// FAKE_NCCL_REMOTE_ERROR 1: who waits for a process that is gone says ncclRemoteError
// FAKE_NCCL_ASYNC_ERROR  RANK:RESULT:AFTER_CALLS: what ncclCommGetAsyncError says from then on
// FAKE_NCCL_CALL_ERROR   RANK:RESULT:CALL: what this call returns, counted from 1
// NCCL_HOSTID            as with the real one
// The ranks are those of the unique id's communicator; calls are counted over all that come of it.
#include "nccl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static char last_error[1024];
static struct driver driver;
static bool driver_found;
static pthread_once_t driver_once = PTHREAD_ONCE_INIT;

_Noreturn void nccl_mistake(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("fake nccl: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

void nccl_note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
}

long nccl_setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text == NULL || *text == 0 ? otherwise : atol(text);
}

static void load_driver(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) return;
    struct {
        const char *name;
        void *to;
    } functions[] = {
        {"fake_cuda_enqueue", &driver.enqueue},
        {"fake_cuda_stream_device", &driver.stream_device},
        {"fake_cuda_holds", &driver.holds},
        {"fake_cuda_current_device", &driver.current_device},
        {"cuCtxGetCurrent", &driver.get_current},
        {"cuCtxSetCurrent", &driver.set_current},
        {"cuDevicePrimaryCtxRetain", &driver.retain},
        {"cuDeviceGetPCIBusId", &driver.bus_id},
        {"cuEventCreate", &driver.event_create},
        {"cuEventRecord", &driver.event_record},
        {"cuEventDestroy_v2", &driver.event_destroy},
        {"cuStreamWaitEvent", &driver.stream_wait},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *found = dlsym(library, functions[i].name);
        if (found == NULL) return;
        *(void **)functions[i].to = found;
    }
    driver_found = true;
}

const struct driver *nccl_driver(void) {
    pthread_once(&driver_once, load_driver);
    if (!driver_found) nccl_note("no usable libcuda.so.1");
    return driver_found ? &driver : NULL;
}

EXPORT ncclResult_t ncclGetVersion(int *version) {
    if (version == NULL) return ncclInvalidArgument;
    *version = (int)nccl_setting("FAKE_NCCL_VERSION", 22809);
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    return id == NULL ? ncclInvalidArgument : world_new_id(id);
}

EXPORT const char *ncclGetErrorString(ncclResult_t result) {
    static const char *texts[] = {
        "no error",
        "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        "unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "internal error - please report this issue to the NCCL developers",
        "invalid argument (run with NCCL_DEBUG=WARN for details)",
        "invalid usage (run with NCCL_DEBUG=WARN for details)",
        "remote process exited or there was a network error",
        "NCCL operation in progress",
        "timeout",
    };
    bool known = (int)result >= 0 && result < ncclNumResults;
    return known ? texts[result] : "unknown result code";
}

// Of the whole process, as with the real one.
EXPORT const char *ncclGetLastError(ncclComm_t comm) {
    (void)comm;
    return last_error;
}
