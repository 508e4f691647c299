/* A stand-in for NVIDIA's libcuda on machines without it: the calls that we make of it, checked and
 * written down. It reads machine code as the driver does (entry, architecture, parameters, threads),
 * so a launch that does not fit its kernel fails here too. It computes nothing.
 *
 * Tests set the variables, and read stand_in_calls.
 */
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
};

/* What tests say of the machine. */
int stand_in_devices = 1;
int stand_in_capability = 90;
int stand_in_version = 13000;
int stand_in_shared = 232448;
void *stand_in_current = NULL; /* the context of this thread; all threads share it here */
/* The function that is to fail, with what. */
char stand_in_failing[64] = "";
int stand_in_status = SUCCESS;
char stand_in_calls[1 << 16] = "";

enum { CONTEXT = 0x1000, MOST_PARAMETERS = 64, PLAIN_SHARED = 48 * 1024 };
static int initialized = 0;

static struct function {
    char name[128];
    int sizes[MOST_PARAMETERS];
    int count, threads, dynamic;
} functions[64];
static int function_count = 0;

static void note(const char *format, ...)
{
    size_t used = strlen(stand_in_calls);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(stand_in_calls + used, sizeof stand_in_calls - used, format, arguments);
    va_end(arguments);
}

static CUresult called(const char *name)
{
    note("%s", name);
    if (strcmp(stand_in_failing, name) == 0)
        return stand_in_status;
    return initialized || strcmp(name, "cuInit") == 0 ? SUCCESS : NOT_INITIALIZED;
}

#define CALLED(name)                       \
    do {                                   \
        CUresult status = called(name);    \
        if (status != SUCCESS) {           \
            note(" fails\n");              \
            return status;                 \
        }                                  \
    } while (0)

void stand_in_reset(void)
{
    stand_in_devices = 1;
    stand_in_capability = 90;
    stand_in_version = 13000;
    stand_in_shared = 232448;
    stand_in_current = NULL;
    stand_in_failing[0] = stand_in_calls[0] = 0;
    stand_in_status = initialized = function_count = 0;
}

CUresult cuGetErrorName(CUresult error, const char **text)
{
    *text = error == NO_DEVICE           ? "CUDA_ERROR_NO_DEVICE"
            : error == INVALID_VALUE     ? "CUDA_ERROR_INVALID_VALUE"
            : error == INVALID_CONTEXT   ? "CUDA_ERROR_INVALID_CONTEXT"
            : error == NO_BINARY_FOR_GPU ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
            : error == NOT_FOUND         ? "CUDA_ERROR_NOT_FOUND"
                                         : NULL;
    return *text ? SUCCESS : INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
    const char *name;
    *text = cuGetErrorName(error, &name) == SUCCESS ? "as the stand-in says" : NULL;
    return *text ? SUCCESS : INVALID_VALUE;
}

CUresult cuInit(unsigned int flags)
{
    CALLED("cuInit");
    note("\n");
    initialized = stand_in_devices > 0;
    return flags ? INVALID_VALUE : initialized ? SUCCESS : NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version)
{
    *version = stand_in_version;
    return SUCCESS;
}

CUresult cuDeviceGet(int *device, int ordinal)
{
    CALLED("cuDeviceGet");
    note(" %d\n", ordinal);
    *device = ordinal;
    return ordinal < stand_in_devices ? SUCCESS : INVALID_VALUE;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, int device)
{
    CALLED("cuDeviceGetAttribute");
    note(" %d of %d\n", attribute, device);
    *value = attribute == 75   ? stand_in_capability / 10
             : attribute == 76 ? stand_in_capability % 10
             : attribute == 97 ? stand_in_shared
                               : -1;
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(void **context, int device)
{
    CALLED("cuDevicePrimaryCtxRetain");
    note(" %d\n", device);
    *context = (void *)(uintptr_t)(CONTEXT + device);
    return SUCCESS;
}

CUresult cuCtxGetCurrent(void **context)
{
    CALLED("cuCtxGetCurrent");
    note("\n");
    *context = stand_in_current;
    return SUCCESS;
}

CUresult cuCtxSetCurrent(void *context)
{
    CALLED("cuCtxSetCurrent");
    note(" %p\n", context);
    stand_in_current = context;
    return SUCCESS;
}

CUresult cuCtxGetDevice(int *device)
{
    CALLED("cuCtxGetDevice");
    note("\n");
    if (!stand_in_current)
        return INVALID_CONTEXT;
    *device = (int)((uintptr_t)stand_in_current - CONTEXT);
    return SUCCESS;
}

/* The section of that name of a cubin, or NULL. */
static const Elf64_Shdr *section(const char *image, const char *prefix, const char *name)
{
    const Elf64_Ehdr *head = (const void *)image;
    const Elf64_Shdr *all = (const void *)(image + head->e_shoff);
    const char *names = image + all[head->e_shstrndx].sh_offset;
    for (int i = 0; i < head->e_shnum; i++) {
        const char *found = names + all[i].sh_name;
        size_t length = strlen(prefix);
        if (strncmp(found, prefix, length) == 0 && strcmp(found + length, name) == 0)
            return &all[i];
    }
    return NULL;
}

CUresult cuModuleLoadData(void **module, const void *image)
{
    CALLED("cuModuleLoadData");
    note("\n");
    if (!stand_in_current)
        return INVALID_CONTEXT;
    const Elf64_Ehdr *head = image;
    if (memcmp(head->e_ident, ELFMAG, SELFMAG) != 0 || head->e_machine != EM_CUDA)
        return INVALID_IMAGE;
    /* From CUDA 13 on, chips of Hopper and later have it elsewhere. */
    int made_for = head->e_flags >> (head->e_ident[EI_ABIVERSION] < 8 ? 0 : 8) & 0xff;
    int runs = made_for / 10 == stand_in_capability / 10 && made_for <= stand_in_capability;
    if (!(made_for < 90 ? runs : made_for == stand_in_capability))
        return NO_BINARY_FOR_GPU;
    size_t size = head->e_phoff + (size_t)head->e_phnum * head->e_phentsize;
    *module = malloc(size);
    memcpy(*module, image, size);
    return SUCCESS;
}

CUresult cuModuleUnload(void *module)
{
    CALLED("cuModuleUnload");
    note("\n");
    free(module);
    return SUCCESS;
}

/* Reads the records of .nv.info: format, attribute, and a value of 2 bytes or its length. */
static void read_info(struct function *f, const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint8_t format = at[0], attribute = at[1];
        uint16_t length;
        memcpy(&length, at + 2, 2);
        at += 4;
        if (format != 4)
            continue;
        uint32_t words[3];
        memcpy(words, at, length < sizeof words ? length : sizeof words);
        if (attribute == 0x17) { /* a parameter: index, ordinal and offset, flags and size */
            int ordinal = words[1] & 0xffff;
            f->sizes[ordinal] = (int)(words[2] >> 18);
            f->count = ordinal >= f->count ? ordinal + 1 : f->count;
        } else if (attribute == 0x10) { /* threads of a block that it must have */
            f->threads = (int)(words[0] * words[1] * words[2]);
        }
        at += length;
    }
}

CUresult cuModuleGetFunction(void **function, void *module, const char *name)
{
    CALLED("cuModuleGetFunction");
    note(" %s\n", name);
    const Elf64_Shdr *info = section(module, ".nv.info.", name);
    if (!section(module, ".text.", name) || !info)
        return NOT_FOUND;
    struct function *f = &functions[function_count++];
    memset(f, 0, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    const uint8_t *at = (const uint8_t *)module + info->sh_offset;
    read_info(f, at, at + info->sh_size);
    f->dynamic = PLAIN_SHARED;
    *function = f;
    return SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, int attribute, void *function)
{
    CALLED("cuFuncGetAttribute");
    note(" %d of %s\n", attribute, ((struct function *)function)->name);
    *value = 0;
    return attribute == 1 ? SUCCESS : INVALID_VALUE;
}

CUresult cuFuncSetAttribute(void *function, int attribute, int value)
{
    CALLED("cuFuncSetAttribute");
    struct function *f = function;
    note(" %d of %s = %d\n", attribute, f->name, value);
    if (attribute != 8 || value > stand_in_shared)
        return INVALID_VALUE;
    f->dynamic = value;
    return SUCCESS;
}

CUresult cuLaunchKernel(void *function, unsigned int grid_x, unsigned int grid_y,
                        unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                        unsigned int block_z, unsigned int shared, void *stream,
                        void **parameters, void **extra)
{
    CALLED("cuLaunchKernel");
    if (!stand_in_current) {
        note(" without a context\n");
        return INVALID_CONTEXT;
    }
    struct function *f = function;
    note(" %s grid %u %u %u block %u %u %u shared %u stream %p parameters", f->name, grid_x, grid_y,
         grid_z, block_x, block_y, block_z, shared, stream);
    for (int i = 0; i < f->count; i++) {
        note(" ");
        for (int byte = f->sizes[i] - 1; byte >= 0; byte--)
            note("%02x", ((const uint8_t *)parameters[i])[byte]);
    }
    note("\n");
    int fits = (int)(block_x * block_y * block_z) == f->threads && (int)shared <= f->dynamic;
    return fits && grid_x && grid_y && grid_z && !extra ? SUCCESS : INVALID_VALUE;
}
