// The functions of cuRAND that candle calls: normal and uniform numbers, other ones than the real
// library's (splitmix64, Box-Muller).
#include "stand_in.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

enum { SUCCESS = 0, LENGTH_NOT_MULTIPLE = 105, LAUNCH_FAILURE = 201 };

struct Generator {
    void *stream;
    uint64_t state;
    int device;
};

static uint64_t next(uint64_t &state) {
    uint64_t bits = state += 0x9e3779b97f4a7c15;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
    return bits ^ bits >> 31;
}

// As there, 1 is among them and 0 is not.
static double uniform(uint64_t &state) { return (double)((next(state) >> 11) + 1) * 0x1p-53; }

static double normal(uint64_t &state) {
    double radius = sqrt(-2 * log(uniform(state)));
    return radius * cos(2 * M_PI * uniform(state));
}

EXPORT int curandCreateGenerator(Generator **generator, int) {
    *generator = new Generator{nullptr, 1, fake_cuda_current_device()};
    return SUCCESS;
}

EXPORT int curandDestroyGenerator(Generator *generator) {
    delete generator;
    return SUCCESS;
}

EXPORT int curandSetPseudoRandomGeneratorSeed(Generator *generator, unsigned long long seed) {
    generator->state = seed;
    return SUCCESS;
}

EXPORT int curandSetStream(Generator *generator, void *stream) {
    generator->stream = stream;
    return SUCCESS;
}

template <class T> struct Fill {
    uint64_t state;
    T *out;
    size_t count;
    double mean, deviation;
    bool is_normal;
    int device;

    static void run(void *argument) {
        Fill *fill = (Fill *)argument;
        if (!fake_cuda_holds(fill->out, fill->count * sizeof(T), fill->device)) {
            fprintf(stderr, "emulated: random numbers for no memory of device %d\n", fill->device);
            abort();
        }
        for (size_t i = 0; i < fill->count; i++) {
            fill->out[i] = (T)(fill->is_normal
                                   ? fill->mean + fill->deviation * normal(fill->state)
                                   : uniform(fill->state));
        }
        delete fill;
    }
};

template <class T>
static int start(Generator *generator, T *out, size_t count, double mean, double deviation,
                 bool is_normal) {
    if (is_normal && count % 2 != 0) return LENGTH_NOT_MULTIPLE;
    uint64_t state = next(generator->state);
    auto *fill = new Fill<T>{state, out, count, mean, deviation, is_normal, generator->device};
    if (fake_cuda_enqueue(generator->stream, Fill<T>::run, fill) == 0) return SUCCESS;
    delete fill;
    return LAUNCH_FAILURE;
}

EXPORT int curandGenerateNormal(Generator *generator, float *out, size_t count, float mean,
                                float deviation) {
    return start(generator, out, count, mean, deviation, true);
}

EXPORT int curandGenerateNormalDouble(Generator *generator, double *out, size_t count, double mean,
                                      double deviation) {
    return start(generator, out, count, mean, deviation, true);
}

EXPORT int curandGenerateUniform(Generator *generator, float *out, size_t count) {
    return start(generator, out, count, 0, 0, false);
}

EXPORT int curandGenerateUniformDouble(Generator *generator, double *out, size_t count) {
    return start(generator, out, count, 0, 0, false);
}
