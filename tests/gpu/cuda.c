// The CUDA driver as a machine without a GPU can have it: errors, devices and contexts.
//
// FAKE_CUDA_DEVICES  how many the machine has (1)
// FAKE_CUDA_INIT     what cuInit returns (0)
// FAKE_CUDA_CRASH    1: it ends the process (0)
// FAKE_CUDA_DRIVER   what version it says it is (13000)
// FAKE_CUDA_MEMORY   bytes of each device (16 GiB)
// CUDA_VISIBLE_DEVICES as with the real one
#include "cuda.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_once_t settings_once = PTHREAD_ONCE_INIT;
static bool initialised;
static int device_count;
// Which device of the machine each visible one is.
static int physical[MAX_DEVICES];
size_t cuda_device_memory;
static struct CUctx_st contexts[MAX_DEVICES];
static _Thread_local CUcontext current;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

_Noreturn void cuda_mistake(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("fake cuda: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

static long long setting(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text == NULL || *text == 0 ? otherwise : atoll(text);
}

// Devices in the order of CUDA_VISIBLE_DEVICES; the first entry that is none ends the list.
static void read_settings(void) {
    int present = (int)setting("FAKE_CUDA_DEVICES", 1);
    if (present > MAX_DEVICES) present = MAX_DEVICES;
    cuda_device_memory = (size_t)setting("FAKE_CUDA_MEMORY", 16LL << 30);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (visible == NULL) {
        for (int i = 0; i < present; i++) physical[device_count++] = i;
        return;
    }
    while (device_count < MAX_DEVICES) {
        char *end;
        long index = strtol(visible, &end, 10);
        if (end == visible || index < 0 || index >= present || (*end != ',' && *end != 0)) break;
        for (int i = 0; i < device_count; i++) {
            if (physical[i] == index) return;
        }
        physical[device_count++] = (int)index;
        if (*end == 0) break;
        visible = end + 1;
    }
}

EXPORT CUresult cuInit(unsigned flags) {
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    pthread_once(&settings_once, read_settings);
    if (setting("FAKE_CUDA_CRASH", 0) != 0) abort();
    CUresult result = (CUresult)setting("FAKE_CUDA_INIT", CUDA_SUCCESS);
    if (result != CUDA_SUCCESS) return result;
    if (device_count == 0) return CUDA_ERROR_NO_DEVICE;
    initialised = true;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int *version) {
    if (version == NULL) return CUDA_ERROR_INVALID_VALUE;
    *version = (int)setting("FAKE_CUDA_DRIVER", 13000);
    return CUDA_SUCCESS;
}

static const struct {
    CUresult result;
    const char *name, *text;
} errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "system has unsupported display driver / cuda driver combination"},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
     "forward compatibility was attempted on non supported HW"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult error_text(CUresult error, bool name, const char **text) {
    if (text == NULL) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        if (errors[i].result != error) continue;
        *text = name ? errors[i].name : errors[i].text;
        return CUDA_SUCCESS;
    }
    *text = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuGetErrorName(CUresult error, const char **text) {
    return error_text(error, true, text);
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
    return error_text(error, false, text);
}

static CUresult check_device(const void *out, CUdevice device) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
    return device < 0 || device >= device_count ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int *count) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (count == NULL) return CUDA_ERROR_INVALID_VALUE;
    *count = device_count;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    CUresult result = check_device(device, ordinal);
    if (result == CUDA_SUCCESS) *device = ordinal;
    return result;
}

EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    CUresult result = check_device(name, device);
    if (result == CUDA_SUCCESS) snprintf(name, (size_t)length, "Fake GPU");
    return result;
}

// Every device of every host has its own.
EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    CUresult result = check_device(uuid, device);
    if (result != CUDA_SUCCESS) return result;
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    uint64_t hash = 14695981039346656037u;
    for (const char *c = host; *c != 0; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    memcpy(uuid->bytes, "fakegpu", 7);
    uuid->bytes[7] = (char)('0' + physical[device]);
    memcpy(uuid->bytes + 8, &hash, 8);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    return cuDeviceGetUuid_v2(uuid, device);
}

EXPORT CUresult cuDeviceGetPCIBusId(char *text, int length, CUdevice device) {
    CUresult result = check_device(text, device);
    if (result == CUDA_SUCCESS) {
        snprintf(text, (size_t)length, "0000:%02X:00.0", physical[device] + 1);
    }
    return result;
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    CUresult result = check_device(bytes, device);
    if (result == CUDA_SUCCESS) *bytes = cuda_device_memory;
    return result;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    CUresult result = check_device(value, device);
    if (result != CUDA_SUCCESS) return result;
    if (attribute < 1 || attribute > 160) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case 16: *value = 132; break;                  // multiprocessors
    case 19: *value = 1; break;                    // can map host memory
    case 33: *value = physical[device] + 1; break; // PCI bus
    case 41: *value = 1; break;                    // unified addressing
    case 75: *value = 9; break;                    // compute capability, major
    case 115: *value = 1; break;                   // memory pools
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CUresult result = check_device(context, device);
    if (result != CUDA_SUCCESS) return result;
    pthread_mutex_lock(&lock);
    contexts[device].device = device;
    contexts[device].retained++;
    pthread_mutex_unlock(&lock);
    *context = &contexts[device];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    CUresult result = check_device(&device, device);
    if (result != CUDA_SUCCESS) return result;
    pthread_mutex_lock(&lock);
    if (contexts[device].retained > 0) contexts[device].retained--;
    else result = CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    CUresult result = check_device(active, device);
    if (result != CUDA_SUCCESS) return result;
    if (flags != NULL) *flags = 0;
    *active = contexts[device].retained > 0;
    return CUDA_SUCCESS;
}

CUcontext cuda_current(void) { return current; }

CUcontext cuda_context(int device) { return &contexts[device]; }

EXPORT int fake_cuda_current_device(void) { return current == NULL ? -1 : current->device; }

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    bool known = context == NULL;
    for (int i = 0; i < device_count; i++) {
        known |= context == &contexts[i] && contexts[i].retained > 0;
    }
    if (!known) return CUDA_ERROR_INVALID_CONTEXT;
    current = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (context == NULL) return CUDA_ERROR_INVALID_VALUE;
    *context = current;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    if (current == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    if (device == NULL) return CUDA_ERROR_INVALID_VALUE;
    *device = current->device;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetFlags(unsigned flags) {
    (void)flags;
    return current == NULL ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize(void) {
    if (current == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    cuda_wait_for_all(current);
    return CUDA_SUCCESS;
}
