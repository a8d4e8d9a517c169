/* metal.m: the Metal device: opening it, its memory and what is asked of the system for that. Its
 * pipelines are metal_pipelines.m's, the replay of programs is metal_replay.m's. Kernel ids,
 * buffers by id and the checks of records are shared with the CPU device (kernels.h).
 *
 * Manual retain and release, so that one source builds here and, with GCC's Objective-C runtime,
 * off a Mac. Every entry has its own autorelease pool. No completion handlers: wait() blocks in
 * waitUntilCompleted, so no other thread ever holds an object of ours.
 *
 * Lifetimes: the device owns its pipelines until it closes. A program holds its buffers, and is
 * destroyed only after its replay, so command buffers need no references of their own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "metal/metal_objects.h"
#include "shader_source.h"

/* ---- opening ---- */

/* The newest Apple family of the GPU, 7 for the M1's; 0: it is none, or older. */
static int family_of(id<MTLDevice> gpu)
{
    int family = 0;
    for (int i = 7; [gpu supportsFamily:(MTLGPUFamily)(MTLGPUFamilyApple7 + i - 7)]; i++)
        family = i;
    return family;
}

/* Fast math may assume that no value is NaN or infinite. macOS 15 has another word for it. */
static void leave_out_fast_math(MTLCompileOptions *options)
{
#if !defined(__MAC_OS_X_VERSION_MAX_ALLOWED) || __MAC_OS_X_VERSION_MAX_ALLOWED >= 150000
    if (@available(macOS 15.0, *)) {
        [options setMathMode:MTLMathModeSafe];
        return;
    }
#endif
    [options setFastMathEnabled:NO];
}

static int open_library(marlin_device *device)
{
    NSError *error = nil;
    char path[PATH_BYTES];
    if (marlin_metallib_path(path, sizeof path)) {
        device->library = [device->gpu newLibraryWithURL:url_of(path) error:&error];
        if (device->library) return MARLIN_OK;
        snprintf(device->note, sizeof device->note,
                 "marlin.metallib does not load, so the shaders' source was compiled: %s",
                 text_of(error));
    }
    NSString *source = [NSString stringWithUTF8String:(const char *)marlin_shader_source];
    MTLCompileOptions *options = MAKE(MTLCompileOptions);
    [options setLanguageVersion:MTLLanguageVersion3_1];
    leave_out_fast_math(options);
    device->library = [device->gpu newLibraryWithSource:source options:options error:&error];
    if (device->library) return MARLIN_OK;
    return marlin_fail(MARLIN_EDEVICE, "the shaders do not compile: %.400s", text_of(error));
}

/* The default GPU. A session without a display or in a sandbox may have none, and the list of all
 * still names it. */
static id<MTLDevice> new_gpu(void)
{
    id<MTLDevice> gpu = MTLCreateSystemDefaultDevice();
    if (gpu) return gpu;
    NSArray *all = [MTLCopyAllDevices() autorelease];
    return [[all firstObject] retain];
}

static int open_gpu(marlin_device *device, const char *wanted)
{
    device->gpu = new_gpu();
    if (!device->gpu)
        return marlin_fail(MARLIN_ENODEV,
                           "this system has no Metal GPU, or shows none to this session (headless, "
                           "sandboxed, in a virtual machine)");
    const char *name = [[device->gpu name] UTF8String];
    int family = family_of(device->gpu);
    if (family == 0 && strstr(name, "aravirtual"))
        return marlin_fail(MARLIN_ENODEV,
                           "%.64s is a virtual machine's GPU, which lacks what the kernels need of "
                           "an Apple GPU of family 7 (M1) or newer",
                           name);
    if (family == 0 || ![device->gpu hasUnifiedMemory])
        return marlin_fail(
            MARLIN_ENODEV,
            "%.64s is no Apple GPU of family 7 (M1) or newer, which the kernels need", name);
    snprintf(device->family, sizeof device->family, "apple%d", family);
    if (wanted[0] && strcmp(wanted, device->family) != 0)
        return marlin_fail(MARLIN_EINVAL, "this GPU does not have the instruction set %s, it is %s",
                           wanted, device->family);
    device->queue = [device->gpu newCommandQueue];
    device->fence = [device->gpu newFence];
    device->pace = 1;
    device->status = [device->gpu newBufferWithLength:sizeof(uint32_t)
                                              options:MTLResourceStorageModeShared];
    device->nothing = [device->gpu newBufferWithLength:16 options:MTLResourceStorageModeShared];
    if (!device->queue || !device->fence || !device->status || !device->nothing)
        return marlin_fail(MARLIN_ENOMEM, "no command queue can be had of %.64s", name);
    return MARLIN_OK;
}

/* ---- residency ---- */

/* Residency sets came with macOS 15; an older SDK does not declare them, so they are left out. */
#if defined(__MAC_OS_X_VERSION_MAX_ALLOWED) && __MAC_OS_X_VERSION_MAX_ALLOWED < 150000
static void open_residency(marlin_device *device) { (void)device; }
static void close_residency(marlin_device *device) { (void)device; }
void marlin_request_residency(marlin_device *device) { (void)device; }
static void set_resident(marlin_device *device, id<MTLBuffer> buffer, BOOL resident)
{
    (void)device, (void)buffer, (void)resident;
}
#else
/* Without a set, the system may page buffers out between two steps and in again at the next. */
static void open_residency(marlin_device *device)
{
    if (@available(macOS 15.0, *)) {
        if (![device->gpu respondsToSelector:@selector(newResidencySetWithDescriptor:error:)])
            return;
        MTLResidencySetDescriptor *descriptor = MAKE(MTLResidencySetDescriptor);
        device->residency = [device->gpu newResidencySetWithDescriptor:descriptor error:NULL];
        if (device->residency) [device->queue addResidencySet:device->residency];
    }
}

static void close_residency(marlin_device *device)
{
    if (@available(macOS 15.0, *)) {
        if (!device->residency) return;
        [device->queue removeResidencySet:device->residency];
        [device->residency endResidency];
        [device->residency release];
    }
}

static void set_resident(marlin_device *device, id<MTLBuffer> buffer, BOOL resident)
{
    if (@available(macOS 15.0, *)) {
        if (resident)
            [device->residency addAllocation:buffer];
        else
            [device->residency removeAllocation:buffer];
        device->residency_grew |= resident;
        /* What is removed must be gone before the buffer is. */
        if (!resident) [device->residency commit];
    }
}

/* A process that asked for residency and never ran anything does not get its memory back from the
 * system when the set goes (Apple's FB23959296, as llama.cpp's issue 25937 has it). */
static void run_one_blit(marlin_device *device)
{
    if (device->has_run) return;
    device->has_run = YES;
    id<MTLCommandBuffer> commands = [device->queue commandBuffer];
    id<MTLBlitCommandEncoder> encoder = [commands blitCommandEncoder];
    [encoder fillBuffer:device->nothing range:NSMakeRange(0, 4) value:0];
    [encoder endEncoding];
    [commands commit];
    [commands waitUntilCompleted];
}

void marlin_request_residency(marlin_device *device)
{
    if (@available(macOS 15.0, *)) {
        if (device->residency_grew) [device->residency commit];
        [device->residency requestResidency];
        device->residency_grew = NO;
        if (device->residency) run_one_blit(device);
    }
}
#endif

void marlin_begin_activity(marlin_device *device)
{
    if (device->activity) return;
    NSActivityOptions options = NSActivityUserInitiated | NSActivityLatencyCritical;
    device->activity = [[[NSProcessInfo processInfo] beginActivityWithOptions:options
                                                                       reason:@"a step"] retain];
}

static void end_activity(marlin_device *device)
{
    if (device->activity) [[NSProcessInfo processInfo] endActivity:device->activity];
    [device->activity release];
    device->activity = nil;
}

/* ---- the device ---- */

int marlin_device_open(const marlin_device_options *options, marlin_device **out)
{
    @autoreleasepool {
        if (!options || !out)
            return marlin_fail(MARLIN_EINVAL, "no options or nowhere to put the device");
        char wanted[sizeof options->isa + 1] = {0};
        memcpy(wanted, options->isa, sizeof options->isa);
        marlin_device *device = calloc(1, sizeof *device);
        if (!device || marlin_buffers_open(&device->buffers) != MARLIN_OK) {
            free(device);
            return marlin_fail(MARLIN_ENOMEM, "no memory for a device");
        }
        int code = open_gpu(device, wanted);
        if (code == MARLIN_OK) code = open_library(device);
        if (code == MARLIN_OK) {
            marlin_open_archive(device, (const char *)marlin_shader_source);
            open_residency(device);
            *out = device;
        } else {
            marlin_device_close(device);
        }
        return code;
    }
}

void marlin_device_close(marlin_device *device)
{
    @autoreleasepool {
        if (!device) return;
        device->explains = YES; /* nothing is encoded ahead any more */
        if (device->running) marlin_program_wait(device->running);
        marlin_drop_ahead(device);
        marlin_save_archive(device);
        end_activity(device);
        marlin_buffers_close(device);
        close_residency(device);
        for (int32_t i = 0; i < device->num_pipelines; i++) [device->pipelines[i].state release];
        free(device->pipelines);
        [device->nothing release];
        [device->status release];
        [device->archive release];
        [device->library release];
        [device->fence release];
        [device->queue release];
        [device->gpu release];
        free(device);
    }
}

int marlin_device_describe(marlin_device *device, marlin_device_info *out)
{
    @autoreleasepool {
        if (!device || !out)
            return marlin_fail(MARLIN_EINVAL, "no device or nowhere to put its description");
        *out = (marlin_device_info){
            .page_bytes = (int32_t)sysconf(_SC_PAGESIZE),
            .memory_bytes = (int64_t)[device->gpu recommendedMaxWorkingSetSize],
            .max_buffer_bytes = (int64_t)[device->gpu maxBufferLength],
            .allocated_bytes = device->buffers.allocated_bytes,
            .mapped_bytes = device->buffers.mapped_bytes,
        };
        snprintf(out->name, sizeof out->name, "%s", [[device->gpu name] UTF8String]);
        snprintf(out->isa, sizeof out->isa, "%s", device->family);
        snprintf(out->note, sizeof out->note, "%s", device->note);
        return MARLIN_OK;
    }
}

int marlin_device_keep_resident(marlin_device *device)
{
    @autoreleasepool {
        if (!device) return marlin_fail(MARLIN_EINVAL, "no device");
        marlin_request_residency(device);
        if (!device->running) end_activity(device);
        return MARLIN_OK;
    }
}

/* ---- buffers: the pages that hold them, wrapped without a copy ---- */

marlin_buffers *marlin_device_buffers(marlin_device *device) { return &device->buffers; }

int marlin_device_attach(marlin_device *device, marlin_buffer *buffer)
{
    @autoreleasepool {
        /* Mapped pages may begin before the buffer; memory to wrap must begin one. */
        uint8_t *begin = buffer->mapping ? buffer->mapping : buffer->memory;
        if ((uintptr_t)begin % (uintptr_t)sysconf(_SC_PAGESIZE) != 0)
            return marlin_fail(MARLIN_EINVAL, "memory to wrap begins at %p, within a page",
                               (void *)begin);
        buffer->object_offset = buffer->memory - begin;
        size_t pages = marlin_whole_pages(buffer->object_offset + buffer->bytes);
        int64_t limit = (int64_t)[device->gpu recommendedMaxWorkingSetSize];
        if ((int64_t)pages > limit - device->used_bytes)
            return marlin_fail(MARLIN_ENOMEM,
                               "a buffer of %lld bytes: the GPU may use %lld bytes, and %lld of "
                               "them are taken",
                               (long long)buffer->bytes, (long long)limit,
                               (long long)device->used_bytes);
        if (pages > [device->gpu maxBufferLength])
            return marlin_fail(MARLIN_ENOMEM, "a buffer of %lld bytes: this GPU's largest has %lld",
                               (long long)buffer->bytes, (long long)[device->gpu maxBufferLength]);
        /* Barriers are recorded, so Metal need not look for hazards itself. */
        MTLResourceOptions options =
            MTLResourceStorageModeShared | MTLResourceHazardTrackingModeUntracked;
        id<MTLBuffer> object = [device->gpu newBufferWithBytesNoCopy:begin
                                                              length:pages
                                                             options:options
                                                         deallocator:nil];
        if (!object)
            return marlin_fail(MARLIN_ENOMEM, "the GPU takes no buffer of %lld bytes",
                               (long long)buffer->bytes);
        buffer->object = object;
        device->used_bytes += (int64_t)pages;
        set_resident(device, object, YES);
        return MARLIN_OK;
    }
}

void marlin_device_detach(marlin_device *device, marlin_buffer *buffer)
{
    @autoreleasepool {
        id<MTLBuffer> object = buffer->object;
        device->used_bytes -= (int64_t)[object length];
        set_resident(device, object, NO);
        [object release];
    }
}
