// Sums and the like, with the roundings of the real one: in the type itself, one addition after
// another. Only the order may differ there.
#include "nccl.h"

#include <math.h>
#include <string.h>

static float widen(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float from_bfloat16(uint16_t half) { return widen((uint32_t)half << 16); }

static uint16_t to_bfloat16(float value) {
    uint32_t bits = bits_of(value);
    if (isnan(value)) return (uint16_t)(bits >> 16 | 0x40);
    // To nearest, ties to even.
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_float16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    int exponent = half >> 10 & 0x1f;
    uint32_t mantissa = half & 0x3ff;
    if (exponent == 31) return widen(sign | 0x7f800000 | mantissa << 13);
    float size = exponent == 0 ? ldexpf((float)mantissa, -24)
                               : ldexpf((float)(mantissa | 0x400), exponent - 25);
    return sign != 0 ? -size : size;
}

static uint16_t to_float16(float value) {
    uint16_t sign = (uint16_t)(bits_of(value) >> 16 & 0x8000);
    if (isnan(value)) return (uint16_t)(sign | 0x7e00);
    float size = fabsf(value);
    if (size >= 65520.0f) return (uint16_t)(sign | 0x7c00);
    // In units of the last place of what is stored; rintf goes to even.
    int exponent;
    frexpf(size, &exponent);
    if (exponent < -13) exponent = -13;
    uint32_t units = (uint32_t)rintf(ldexpf(size, 11 - exponent));
    // Below 1024 units it has no hidden bit; 2048 of them carry over by themselves.
    uint32_t bits = units < 1024 ? units : ((uint32_t)(exponent + 13) << 10) + units;
    return (uint16_t)(sign | bits);
}

#define REDUCE(NAME, TYPE, WIDE, READ, WRITE, LARGER, SMALLER)                                     \
    static void NAME(TYPE *to, const TYPE *from, size_t count, int op) {                           \
        for (size_t i = 0; i < count; i++) {                                                       \
            WIDE a = READ(to[i]), b = READ(from[i]);                                               \
            switch (op) {                                                                          \
            case ncclProd: to[i] = WRITE(a * b); break;                                            \
            case ncclMax: to[i] = WRITE(LARGER(a, b)); break;                                      \
            case ncclMin: to[i] = WRITE(SMALLER(a, b)); break;                                     \
            default: to[i] = WRITE(a + b);                                                         \
            }                                                                                      \
        }                                                                                          \
    }

#define SAME(value) (value)
#define NARROW8(value) ((uint8_t)(value))
#define UNSIGNED32(value) ((uint32_t)(value))
#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define SMALLER(a, b) ((a) < (b) ? (a) : (b))
// Sums and products of signed numbers are those of unsigned ones, which may overflow.
#define LARGER_SIGNED(TYPE, a, b) ((TYPE)(a) > (TYPE)(b) ? (a) : (b))
#define SMALLER_SIGNED(TYPE, a, b) ((TYPE)(a) < (TYPE)(b) ? (a) : (b))
#define LARGER8(a, b) LARGER_SIGNED(int8_t, a, b)
#define SMALLER8(a, b) SMALLER_SIGNED(int8_t, a, b)
#define LARGER32(a, b) LARGER_SIGNED(int32_t, a, b)
#define SMALLER32(a, b) SMALLER_SIGNED(int32_t, a, b)
#define LARGER64(a, b) LARGER_SIGNED(int64_t, a, b)
#define SMALLER64(a, b) SMALLER_SIGNED(int64_t, a, b)

REDUCE(reduce_int8, uint8_t, uint32_t, SAME, NARROW8, LARGER8, SMALLER8)
REDUCE(reduce_uint8, uint8_t, uint32_t, SAME, NARROW8, LARGER, SMALLER)
REDUCE(reduce_int32, uint32_t, uint32_t, SAME, SAME, LARGER32, SMALLER32)
REDUCE(reduce_uint32, uint32_t, uint32_t, SAME, SAME, LARGER, SMALLER)
REDUCE(reduce_int64, uint64_t, uint64_t, SAME, SAME, LARGER64, SMALLER64)
REDUCE(reduce_uint64, uint64_t, uint64_t, SAME, SAME, LARGER, SMALLER)
REDUCE(reduce_float16, uint16_t, float, from_float16, to_float16, fmaxf, fminf)
REDUCE(reduce_bfloat16, uint16_t, float, from_bfloat16, to_bfloat16, fmaxf, fminf)
REDUCE(reduce_float32, float, float, SAME, SAME, fmaxf, fminf)
REDUCE(reduce_float64, double, double, SAME, SAME, fmax, fmin)

// An average of numbers with a point is the sum of their shares.
static void take_share(void *data, size_t count, int type, int ranks) {
    uint16_t *half = data;
    float *single = data;
    double *twofold = data;
    float share = 1.0f / (float)ranks;
    for (size_t i = 0; i < count; i++) {
        switch (type) {
        case ncclFloat16:
            half[i] = to_float16(from_float16(half[i]) * from_float16(to_float16(share)));
            break;
        case ncclBfloat16:
            half[i] = to_bfloat16(from_bfloat16(half[i]) * from_bfloat16(to_bfloat16(share)));
            break;
        case ncclFloat32: single[i] *= share; break;
        case ncclFloat64: twofold[i] *= 1.0 / ranks; break;
        }
    }
}

static void add(void *to, const void *from, size_t count, int type, int op) {
    switch (type) {
    case ncclInt8: reduce_int8(to, from, count, op); break;
    case ncclUint8: reduce_uint8(to, from, count, op); break;
    case ncclInt32: reduce_int32(to, from, count, op); break;
    case ncclUint32: reduce_uint32(to, from, count, op); break;
    case ncclInt64: reduce_int64(to, from, count, op); break;
    case ncclUint64: reduce_uint64(to, from, count, op); break;
    case ncclFloat16: reduce_float16(to, from, count, op); break;
    case ncclBfloat16: reduce_bfloat16(to, from, count, op); break;
    case ncclFloat32: reduce_float32(to, from, count, op); break;
    case ncclFloat64: reduce_float64(to, from, count, op); break;
    }
}

void reduce_step(void *to, const void *from, size_t count, int type, int op, bool first,
                 int ranks) {
    size_t bytes = count * kernel_type_size(type);
    if (first) memcpy(to, from, bytes);
    if (op != ncclAvg) {
        if (!first) add(to, from, count, type, op);
        return;
    }
    if (first) {
        take_share(to, count, type, ranks);
        return;
    }
    // The other's share, piece by piece.
    char share[4096];
    size_t width = kernel_type_size(type), most = sizeof share / width;
    for (size_t i = 0; i < count; i += most) {
        size_t some = count - i < most ? count - i : most;
        memcpy(share, (const char *)from + i * width, some * width);
        take_share(share, some, type, ranks);
        add((char *)to + i * width, share, some, type, ncclSum);
    }
}

#define DIVIDE(TYPE)                                                                               \
    for (size_t i = 0; i < count; i++) ((TYPE *)to)[i] = (TYPE)(((TYPE *)to)[i] / (TYPE)ranks)

// An average of whole numbers is the sum's part, rounded towards zero.
void reduce_end(void *to, size_t count, int type, int op, int ranks) {
    if (op != ncclAvg) return;
    switch (type) {
    case ncclInt8: DIVIDE(int8_t); break;
    case ncclUint8: DIVIDE(uint8_t); break;
    case ncclInt32: DIVIDE(int32_t); break;
    case ncclUint32: DIVIDE(uint32_t); break;
    case ncclInt64: DIVIDE(int64_t); break;
    case ncclUint64: DIVIDE(uint64_t); break;
    }
}
