/* A stand-in for the CUDA driver: the functions that preheat.memory.cuda calls, declared as cuda.h declares them.

Memory of a GPU is an object of POSIX shared memory, and an IPC handle is its name. What the driver wants is wanted here
too: a current context, flags that are known, copies within what is open. Nothing is said of a GPU. */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef void *CUcontext;
typedef struct stream {
    int live;
} *CUstream;
typedef struct {
    char reserved[64];
} CUipcMemHandle;

enum { INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, ILLEGAL_ADDRESS = 700 };
enum { DEVICES = 2, MAPPINGS = 16, DEPTH = 8 };

static struct mapping {
    CUdeviceptr start;
    size_t size;
} mappings[MAPPINGS];
static int initialized, contexts[DEVICES], retained, streams;
static __thread CUcontext current[DEPTH];
static __thread int depth;

static struct mapping *mapping_of(CUdeviceptr start, size_t size) {
    for (struct mapping *each = mappings; each < mappings + MAPPINGS; each++)
        if (each->start && start >= each->start && start + size <= each->start + each->size) return each;
    return NULL;
}

/* For the tests: how much is open, and how deep the calling thread's stack of contexts is. */
int stand_in_mappings(void) {
    int count = 0;
    for (int i = 0; i < MAPPINGS; i++) count += mappings[i].start != 0;
    return count;
}
int stand_in_streams(void) { return streams; }
int stand_in_contexts(void) { return retained; }
int stand_in_depth(void) { return depth; }

CUresult cuInit(unsigned int flags) {
    initialized = 1;
    return flags ? INVALID_VALUE : 0;
}

CUresult cuDeviceGetCount(int *count) {
    *count = DEVICES;
    return initialized ? 0 : NOT_INITIALIZED;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < DEVICES ? 0 : INVALID_DEVICE;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = contexts + device;
    retained++;
    return 0;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    if ((int *)context < contexts || (int *)context >= contexts + DEVICES || depth == DEPTH) return INVALID_CONTEXT;
    current[depth++] = context;
    return 0;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    if (!depth) return INVALID_CONTEXT;
    *context = current[--depth];
    return 0;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *name ? 0 : INVALID_VALUE;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *start, CUipcMemHandle handle, unsigned int flags) {
    struct stat status;
    if (!depth) return INVALID_CONTEXT;
    if (flags != 1 || handle.reserved[63]) return INVALID_VALUE;
    int descriptor = shm_open(handle.reserved, O_RDWR, 0);
    if (descriptor < 0 || fstat(descriptor, &status)) return INVALID_VALUE;
    for (struct mapping *each = mappings; each < mappings + MAPPINGS; each++) {
        if (each->start) continue;
        each->size = status.st_size;
        each->start = (CUdeviceptr)mmap(NULL, each->size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        close(descriptor);
        *start = each->start;
        return 0;
    }
    abort();
}

CUresult cuIpcCloseMemHandle(CUdeviceptr start) {
    struct mapping *mapping = mapping_of(start, 1);
    if (!depth) return INVALID_CONTEXT;
    if (!mapping || mapping->start != start) return INVALID_VALUE;
    munmap((void *)start, mapping->size);
    mapping->start = 0;
    return 0;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr pointer) {
    struct mapping *mapping = mapping_of(pointer, 1);
    if (!depth) return INVALID_CONTEXT;
    if (!mapping) return INVALID_VALUE;
    *base = mapping->start;
    *size = mapping->size;
    return 0;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    if (!depth) return INVALID_CONTEXT;
    if (flags != 1) return INVALID_VALUE;
    *stream = malloc(sizeof **stream);
    (*stream)->live = 1;
    streams++;
    return 0;
}

CUresult cuStreamDestroy_v2(CUstream stream) {
    if (!depth) return INVALID_CONTEXT;
    free(stream);
    streams--;
    return 0;
}

CUresult cuStreamSynchronize(CUstream stream) { return depth ? stream->live - 1 : INVALID_CONTEXT; }

CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, CUstream stream) {
    if (!depth || !stream->live) return INVALID_CONTEXT;
    if (!mapping_of(source, size)) return ILLEGAL_ADDRESS;
    memcpy(target, (void *)source, size);
    return 0;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, CUstream stream) {
    if (!depth || !stream->live) return INVALID_CONTEXT;
    if (!mapping_of(target, size)) return ILLEGAL_ADDRESS;
    memcpy((void *)target, source, size);
    return 0;
}
