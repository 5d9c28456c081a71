// CUDA C++ as far as candle's kernels of f32, f64 and integers use it, in C++ for the host. Stands
// for all headers of CUDA's that they include.
#ifndef EMULATED_DEVICE_H
#define EMULATED_DEVICE_H

#include "kernel.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <math.h>
#include <type_traits>

#define __global__
#define __host__
#define __device__ inline
#define __forceinline__
#define __launch_bounds__(...)
#define __restrict__
// One block runs at a time.
#define __shared__ static
// Below 530 candle leaves the kernels of 16 and 8 bits out.
#define __CUDA_ARCH__ 520
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define threadIdx emulated_thread
#define blockIdx emulated_block
#define blockDim emulated_block_size
#define gridDim emulated_grid_size
#define __syncthreads() emulated_barrier()

template <class T> T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
    emulated_shuffle(&value, sizeof value, mask);
    return value;
}

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * (float)M_SQRT1_2); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }

// Of different types, unlike those of C++.
template <class A, class B> std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B> std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return (T)a < (T)b ? (T)b : (T)a;
}

// All threads run on one of the host's: plain operations are atomic.
template <class T, class V> T atomicAdd(T *at, V value) {
    T old = *at;
    *at = old + value;
    return old;
}
template <class T, class V> T atomicMax(T *at, V value) {
    T old = *at;
    if ((T)value > old) *at = value;
    return old;
}
template <class T, class V> T atomicMin(T *at, V value) {
    T old = *at;
    if ((T)value < old) *at = value;
    return old;
}
template <class T, class V, class W> T atomicCAS(T *at, V expected, W value) {
    T old = *at;
    if (old == (T)expected) *at = value;
    return old;
}

template <class To, class From> To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
#define __double_as_longlong(x) same_bits<long long>((double)(x))
#define __longlong_as_double(x) same_bits<double>((long long)(x))
#define __float_as_uint(x) same_bits<unsigned>((float)(x))
#define __uint_as_float(x) same_bits<float>((unsigned)(x))
#define __float_as_int(x) same_bits<int>((float)(x))
#define __int_as_float(x) same_bits<float>((int)(x))

// Of 16 and 8 bits: named in what is compiled, never called.
struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
struct __nv_fp8_e4m3 {
    uint8_t __x;
    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float) { abort(); }
};
enum { __NV_E4M3 };
inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { abort(); }
inline float __half2float(__half) { abort(); }
inline __half __hmax_nan(__half, __half) { abort(); }
inline __half __hmin_nan(__half, __half) { abort(); }
inline unsigned short __half_as_ushort(__half half) { return half.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

namespace cuda {
namespace std {
using ::std::numeric_limits;
}
} // namespace cuda

#endif
