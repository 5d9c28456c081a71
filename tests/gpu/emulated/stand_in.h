// What the stand-in for the driver gives to the libraries around it (../cuda.h), in C++.
#ifndef EMULATED_STAND_IN_H
#define EMULATED_STAND_IN_H

#include <cstddef>

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int fake_cuda_enqueue(void *stream, void (*job)(void *), void *argument);
EXPORT int fake_cuda_stream_device(void *stream);
EXPORT int fake_cuda_holds(const void *start, size_t bytes, int device);
EXPORT int fake_cuda_current_device(void);

#endif
