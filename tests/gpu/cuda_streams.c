// Streams and events: each stream is a thread with a queue, so that work really is asynchronous.
#include "cuda.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

struct work {
    struct work *next;
    cuda_job run;
    void *argument;
};

struct CUstream_st {
    struct CUstream_st *next;
    CUcontext context;
    struct work *first;
    struct work **end;
    // A piece of work is taken out of the queue, but not done.
    bool busy;
    // Ends once its queue is empty.
    bool closing;
    // Into a graph that stays empty: what it would hold is a mistake.
    bool captured;
    pthread_cond_t more;
};

// One recording of an event: others may wait for it after the event was recorded anew.
struct record {
    int holders;
    bool reached;
    struct CUstream_st *stream;
    struct timespec time;
};

struct CUevent_st {
    struct record *last;
    unsigned flags;
};

// One lock and one condition for all: nobody needs this to be fast.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t progress = PTHREAD_COND_INITIALIZER;
static struct CUstream_st *streams;

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t key;

static void *stream_main(void *argument) {
    struct CUstream_st *stream = argument;
    pthread_mutex_lock(&lock);
    while (stream->first != NULL || !stream->closing) {
        struct work *work = stream->first;
        if (work == NULL) {
            pthread_cond_wait(&stream->more, &lock);
            continue;
        }
        stream->first = work->next;
        if (stream->first == NULL) stream->end = &stream->first;
        stream->busy = true;
        pthread_mutex_unlock(&lock);
        work->run(work->argument);
        free(work);
        pthread_mutex_lock(&lock);
        stream->busy = false;
        pthread_cond_broadcast(&progress);
    }
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&stream->more);
    free(stream);
    return NULL;
}

static struct CUstream_st *stream_new(CUcontext context) {
    struct CUstream_st *stream = calloc(1, sizeof *stream);
    if (stream == NULL) return NULL;
    stream->context = context;
    stream->end = &stream->first;
    pthread_cond_init(&stream->more, NULL);
    // Signals are for the program's own threads; a detached thread does not hold up its end.
    sigset_t all, before;
    sigfillset(&all);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int failed = pthread_create(&thread, &attributes, stream_main, stream);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (failed) {
        free(stream);
        return NULL;
    }
    stream->next = streams;
    streams = stream;
    return stream;
}

// From now on nobody finds it; what is in its queue is still done.
static void stream_close(struct CUstream_st *stream) {
    struct CUstream_st **at = &streams;
    while (*at != NULL && *at != stream) at = &(*at)->next;
    if (*at != NULL) *at = stream->next;
    stream->closing = true;
    pthread_cond_signal(&stream->more);
}

static void thread_ended(void *argument) {
    struct CUstream_st **mine = argument;
    pthread_mutex_lock(&lock);
    for (int device = 0; device < MAX_DEVICES; device++) {
        if (mine[device] != NULL) stream_close(mine[device]);
    }
    pthread_mutex_unlock(&lock);
    free(mine);
}

static void make_key(void) { pthread_key_create(&key, thread_ended); }

static struct CUstream_st *of_this_thread(CUcontext context) {
    pthread_once(&key_once, make_key);
    struct CUstream_st **mine = pthread_getspecific(key);
    if (mine == NULL) {
        mine = calloc(MAX_DEVICES, sizeof *mine);
        pthread_setspecific(key, mine);
    }
    struct CUstream_st **slot = &mine[context->device];
    if (*slot == NULL) *slot = stream_new(context);
    return *slot;
}

// The stream of a handle, with the lock held; NULL where it is none.
static struct CUstream_st *find(CUstream handle, CUresult *result) {
    CUcontext context = cuda_current();
    if (handle == NULL || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) {
        *result = context == NULL ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_OUT_OF_MEMORY;
        if (context == NULL) return NULL;
        if (handle == CU_STREAM_PER_THREAD) return of_this_thread(context);
        if (context->default_stream == NULL) context->default_stream = stream_new(context);
        return context->default_stream;
    }
    *result = CUDA_ERROR_INVALID_HANDLE;
    for (struct CUstream_st *stream = streams; stream != NULL; stream = stream->next) {
        if (stream == handle) return stream;
    }
    return NULL;
}

static CUresult append(struct CUstream_st *stream, cuda_job job, void *argument) {
    if (stream->captured) cuda_mistake("work on a stream that is being captured");
    struct work *work = malloc(sizeof *work);
    if (work == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *work = (struct work){NULL, job, argument};
    *stream->end = work;
    stream->end = &work->next;
    pthread_cond_signal(&stream->more);
    return CUDA_SUCCESS;
}

CUresult cuda_enqueue(CUstream handle, cuda_job job, void *argument) {
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL) result = append(stream, job, argument);
    pthread_mutex_unlock(&lock);
    return result;
}

static void release(struct record *record) {
    if (record != NULL && --record->holders == 0) free(record);
}

static void reach(void *argument) {
    struct record *record = argument;
    pthread_mutex_lock(&lock);
    record->reached = true;
    clock_gettime(CLOCK_MONOTONIC, &record->time);
    // Who sees this must not find its stream still busy with it.
    record->stream->busy = false;
    release(record);
    pthread_cond_broadcast(&progress);
    pthread_mutex_unlock(&lock);
}

static void wait_and_release(struct record *record) {
    while (!record->reached) pthread_cond_wait(&progress, &lock);
    release(record);
}

static void wait_job(void *argument) {
    pthread_mutex_lock(&lock);
    wait_and_release(argument);
    pthread_mutex_unlock(&lock);
}

// Marks the end of what is in the queue now; the caller holds the mark too.
static struct record *mark(struct CUstream_st *stream) {
    struct record *record = calloc(1, sizeof *record);
    if (record == NULL) return NULL;
    record->holders = 2;
    record->stream = stream;
    if (append(stream, reach, record) == CUDA_SUCCESS) return record;
    free(record);
    return NULL;
}

CUresult cuda_wait(CUstream handle) {
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    struct record *record = stream == NULL ? NULL : mark(stream);
    if (record != NULL) {
        wait_and_release(record);
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

void cuda_wait_for_all(CUcontext context) {
    struct record *marks[1024];
    int count = 0;
    pthread_mutex_lock(&lock);
    for (struct CUstream_st *stream = streams; stream != NULL; stream = stream->next) {
        if (stream->context == context && count < 1024) {
            struct record *record = mark(stream);
            if (record != NULL) marks[count++] = record;
        }
    }
    while (count > 0) wait_and_release(marks[--count]);
    pthread_mutex_unlock(&lock);
}

EXPORT int fake_cuda_enqueue(CUstream stream, cuda_job job, void *argument) {
    return cuda_enqueue(stream, job, argument);
}

EXPORT int fake_cuda_stream_device(CUstream handle) {
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    int device = stream == NULL ? -1 : stream->context->device;
    pthread_mutex_unlock(&lock);
    return device;
}

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    if (stream == NULL || flags > 1) return CUDA_ERROR_INVALID_VALUE;
    CUcontext context = cuda_current();
    if (context == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    *stream = stream_new(context);
    pthread_mutex_unlock(&lock);
    return *stream == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority) {
    (void)priority;
    return cuStreamCreate(stream, flags);
}

EXPORT CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    if (least != NULL) *least = 0;
    if (greatest != NULL) *greatest = -5;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamDestroy_v2(CUstream handle) {
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    if (handle == NULL || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) {
        return result;
    }
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL) {
        stream_close(stream);
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream) { return cuda_wait(stream); }

EXPORT CUresult cuStreamQuery(CUstream handle) {
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL) {
        bool pending = stream->busy || stream->first != NULL;
        result = pending ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL) {
        result = CUDA_SUCCESS;
        // What was recorded until now; an event that was never recorded holds nobody up.
        if (event->last != NULL && !event->last->reached) {
            result = append(stream, wait_job, event->last);
            if (result == CUDA_SUCCESS) event->last->holders++;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuStreamIsCapturing(CUstream handle, int *status) {
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL && status != NULL) {
        *status = stream->captured;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
    (void)mode;
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL) {
        stream->captured = true;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuStreamEndCapture(CUstream handle, void **graph) {
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL && graph != NULL) {
        result = stream->captured ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        stream->captured = false;
        *graph = NULL;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuStreamGetCtx(CUstream handle, CUcontext *context) {
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL && context != NULL) {
        *context = stream->context;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuLaunchHostFunc(CUstream stream, cuda_job function, void *argument) {
    if (function == NULL) return CUDA_ERROR_INVALID_VALUE;
    return cuda_enqueue(stream, function, argument);
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned flags) {
    if (event == NULL) return CUDA_ERROR_INVALID_VALUE;
    if (cuda_current() == NULL) return CUDA_ERROR_INVALID_CONTEXT;
    *event = calloc(1, sizeof **event);
    if (*event == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    (*event)->flags = flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream handle) {
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    CUresult result;
    pthread_mutex_lock(&lock);
    struct CUstream_st *stream = find(handle, &result);
    if (stream != NULL) {
        struct record *record = mark(stream);
        result = record == NULL ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
        if (record != NULL) {
            release(event->last);
            event->last = record;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuEventQuery(CUevent event) {
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&lock);
    bool reached = event->last == NULL || event->last->reached;
    pthread_mutex_unlock(&lock);
    return reached ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventSynchronize(CUevent event) {
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&lock);
    if (event->last != NULL) {
        event->last->holders++;
        wait_and_release(event->last);
    }
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    if (milliseconds == NULL) return CUDA_ERROR_INVALID_VALUE;
    if (start == NULL || end == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    if (start->last == NULL || end->last == NULL) {
        result = CUDA_ERROR_INVALID_HANDLE;
    } else if (!start->last->reached || !end->last->reached) {
        result = CUDA_ERROR_NOT_READY;
    } else {
        const struct timespec *from = &start->last->time, *to = &end->last->time;
        *milliseconds = (float)((double)(to->tv_sec - from->tv_sec) * 1e3 +
                                (double)(to->tv_nsec - from->tv_nsec) / 1e6);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&lock);
    release(event->last);
    pthread_mutex_unlock(&lock);
    free(event);
    return CUDA_SUCCESS;
}
