/* metal.m: the Metal device: opening it, its pipelines, what it binds, and the replay of programs.
 * Kernel ids, buffers by id and the checks of records are shared with the CPU device (kernels.h).
 *
 * Manual retain and release, so that one source builds here and, with GCC's Objective-C runtime,
 * off a Mac. Every entry has its own autorelease pool. No completion handlers: wait() blocks in
 * waitUntilCompleted, so no other thread ever holds an object of ours.
 *
 * Lifetimes: the device owns its pipelines until it closes. A program holds its buffers, and is
 * destroyed only after its replay, so command buffers need no references of their own. */
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "metal/metal.h"
#include "shader_source.h"

/* An object of a class that is made with init alone, not owned. */
#define MAKE(class) ([[[class alloc] init] autorelease])
/* A dispatch's bytes of its program's constants: its parameters, then its call. Apple's GPUs want
 * offsets of constants to be multiples of 4. */
#define CONSTANT_STRIDE 256
#define CALL_OFFSET 128
/* The status word of a replay in which no kernel met an index outside its buffers. */
#define STATUS_FINE UINT32_MAX
#define PATH_BYTES 1024

typedef struct {
    int32_t kernel_id;
    uint32_t constants[NUM_CONSTANTS];
    id<MTLComputePipelineState> state;
} pipeline;

struct marlin_device {
    marlin_buffers buffers;
    id<MTLDevice> gpu;
    id<MTLCommandQueue> queue;
    id<MTLLibrary> library;
    id<MTLBinaryArchive> archive; /* nil: pipelines are not kept */
    char archive_path[PATH_BYTES];
    BOOL archive_grew;
    id residency; /* id<MTLResidencySet>, nil: the OS has none */
    BOOL residency_grew;
    id<MTLBuffer> status;  /* one uint32 */
    id<MTLBuffer> nothing; /* bound where a record binds nothing */
    pipeline *pipelines;
    int32_t num_pipelines;
    int64_t used_bytes; /* of every buffer, whole pages */
    char family[16];
    marlin_program *running;
};

/* What a dispatch runs; states[0] alone unless the kernel has ROWS. */
typedef struct {
    id<MTLComputePipelineState> states[NUM_ROWS];
    NSString *signpost;
} step;

struct marlin_program {
    marlin_device *device;
    marlin_records records;
    step *steps;
    id<MTLBuffer> constants;
    id<MTLCommandBuffer> commands; /* of the replay in flight, else nil */
};

static const char *text_of(NSError *error)
{
    NSString *text = [error localizedDescription];
    return text ? [text UTF8String] : "Metal gives no reason";
}

static NSURL *url_of(const char *path)
{
    return [NSURL fileURLWithPath:[NSString stringWithUTF8String:path]];
}

/* ---- opening ---- */

/* The newest Apple family of the GPU, 7 for the M1's; 0: it is none, or older. */
static int family_of(id<MTLDevice> gpu)
{
    int family = 0;
    for (int i = 7; [gpu supportsFamily:(MTLGPUFamily)(MTLGPUFamilyApple7 + i - 7)]; i++)
        family = i;
    return family;
}

static int open_library(marlin_device *device)
{
    NSError *error = nil;
    char path[PATH_BYTES];
    if (marlin_metallib_path(path, sizeof path)) {
        device->library = [device->gpu newLibraryWithURL:url_of(path) error:&error];
        if (device->library) return MARLIN_OK;
        return marlin_fail(MARLIN_EDEVICE, "marlin.metallib does not load: %.300s", text_of(error));
    }
    NSString *source = [NSString stringWithUTF8String:(const char *)marlin_shader_source];
    MTLCompileOptions *options = MAKE(MTLCompileOptions);
    [options setLanguageVersion:MTLLanguageVersion3_1];
    /* Fast math may assume that no value is NaN or infinite. */
    [options setFastMathEnabled:NO];
    device->library = [device->gpu newLibraryWithSource:source options:options error:&error];
    if (device->library) return MARLIN_OK;
    return marlin_fail(MARLIN_EDEVICE, "the shaders do not compile: %.400s", text_of(error));
}

/* The archive of earlier runs, or an empty one where there is none or it cannot be read. */
static void open_archive(marlin_device *device)
{
    NSString *system = [[NSProcessInfo processInfo] operatingSystemVersionString];
    if (!marlin_archive_path((const char *)marlin_shader_source, [system UTF8String],
                             [[device->gpu name] UTF8String], device->archive_path, PATH_BYTES))
        return;
    MTLBinaryArchiveDescriptor *descriptor = MAKE(MTLBinaryArchiveDescriptor);
    if (access(device->archive_path, R_OK) == 0) [descriptor setUrl:url_of(device->archive_path)];
    device->archive = [device->gpu newBinaryArchiveWithDescriptor:descriptor error:NULL];
    if (device->archive) return;
    [descriptor setUrl:nil];
    device->archive = [device->gpu newBinaryArchiveWithDescriptor:descriptor error:NULL];
}

/* Keep what this process has compiled for the next one. A cache: failing is no error. */
static void save_archive(marlin_device *device)
{
    if (!device->archive_grew) return;
    char partial[PATH_BYTES + 48];
    marlin_begin_archive(device->archive_path, device, partial, sizeof partial);
    BOOL written = [device->archive serializeToURL:url_of(partial) error:NULL];
    marlin_end_archive(device->archive_path, partial, written);
}

static int open_gpu(marlin_device *device, const char *wanted)
{
    device->gpu = MTLCreateSystemDefaultDevice();
    if (!device->gpu) return marlin_fail(MARLIN_ENODEV, "this system has no Metal GPU");
    const char *name = [[device->gpu name] UTF8String];
    int family = family_of(device->gpu);
    if (family == 0 || ![device->gpu hasUnifiedMemory])
        return marlin_fail(
            MARLIN_ENODEV,
            "%.64s is no Apple GPU of family 7 (M1) or newer, which the kernels need", name);
    snprintf(device->family, sizeof device->family, "apple%d", family);
    if (wanted[0] && strcmp(wanted, device->family) != 0)
        return marlin_fail(MARLIN_EINVAL, "this GPU does not have the instruction set %s, it is %s",
                           wanted, device->family);
    device->queue = [device->gpu newCommandQueue];
    device->status = [device->gpu newBufferWithLength:sizeof(uint32_t)
                                              options:MTLResourceStorageModeShared];
    device->nothing = [device->gpu newBufferWithLength:16 options:MTLResourceStorageModeShared];
    if (!device->queue || !device->status || !device->nothing)
        return marlin_fail(MARLIN_ENOMEM, "no command queue can be had of %.64s", name);
    return MARLIN_OK;
}

/* ---- residency ---- */

/* Residency sets came with macOS 15; an older SDK does not declare them, so they are left out. */
#if defined(__MAC_OS_X_VERSION_MAX_ALLOWED) && __MAC_OS_X_VERSION_MAX_ALLOWED < 150000
static void open_residency(marlin_device *device) { (void)device; }
static void close_residency(marlin_device *device) { (void)device; }
static void request_residency(marlin_device *device) { (void)device; }
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

static void request_residency(marlin_device *device)
{
    if (@available(macOS 15.0, *)) {
        if (device->residency_grew) [device->residency commit];
        [device->residency requestResidency];
        device->residency_grew = NO;
    }
}
#endif

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
            open_archive(device);
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
        if (device->running) marlin_program_wait(device->running);
        save_archive(device);
        marlin_buffers_close(device);
        close_residency(device);
        for (int32_t i = 0; i < device->num_pipelines; i++) [device->pipelines[i].state release];
        free(device->pipelines);
        [device->nothing release];
        [device->status release];
        [device->archive release];
        [device->library release];
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
        return MARLIN_OK;
    }
}

int marlin_device_keep_resident(marlin_device *device)
{
    @autoreleasepool {
        if (!device) return marlin_fail(MARLIN_EINVAL, "no device");
        request_residency(device);
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

/* ---- pipelines ---- */

static id<MTLFunction> new_function(marlin_device *device, const pipeline *wanted, NSError **error)
{
    MTLFunctionConstantValues *values = MAKE(MTLFunctionConstantValues);
    for (NSUInteger i = 0; i < NUM_CONSTANTS; i++)
        [values setConstantValue:&wanted->constants[i] type:MTLDataTypeUInt atIndex:i];
    NSString *name = [NSString stringWithUTF8String:marlin_kernels[wanted->kernel_id].name];
    return [device->library newFunctionWithName:name constantValues:values error:error];
}

/* From the archive, else compiled and added to it. */
static id<MTLComputePipelineState> new_state(marlin_device *device, id<MTLFunction> function,
                                             NSError **error)
{
    MTLComputePipelineDescriptor *descriptor = MAKE(MTLComputePipelineDescriptor);
    [descriptor setComputeFunction:function];
    id<MTLComputePipelineState> state = nil;
    if (device->archive) {
        [descriptor setBinaryArchives:[NSArray arrayWithObject:device->archive]];
        state = [device->gpu
            newComputePipelineStateWithDescriptor:descriptor
                                          options:MTLPipelineOptionFailOnBinaryArchiveMiss
                                       reflection:NULL
                                            error:NULL];
        if (state) return state;
        [descriptor setBinaryArchives:nil];
    }
    state = [device->gpu newComputePipelineStateWithDescriptor:descriptor
                                                       options:MTLPipelineOptionNone
                                                    reflection:NULL
                                                         error:error];
    if (state && device->archive)
        device->archive_grew |=
            [device->archive addComputePipelineFunctionsWithDescriptor:descriptor error:NULL];
    return state;
}

static int add_pipeline(marlin_device *device, const marlin_record *record, pipeline wanted)
{
    size_t bytes = (size_t)(device->num_pipelines + 1) * sizeof wanted;
    pipeline *grown = realloc(device->pipelines, bytes);
    if (!grown) return marlin_fail(MARLIN_ENOMEM, "no memory for a pipeline");
    device->pipelines = grown;
    NSError *error = nil;
    id<MTLFunction> function = [new_function(device, &wanted, &error) autorelease];
    if (function) wanted.state = new_state(device, function, &error);
    if (!wanted.state)
        return marlin_fail(MARLIN_EDEVICE, "kernel %s cannot be made: %.300s", record->kernel->name,
                           text_of(error));
    int code = marlin_check_launch(record, [wanted.state maxTotalThreadsPerThreadgroup],
                                   [wanted.state threadExecutionWidth]);
    if (code == MARLIN_OK)
        device->pipelines[device->num_pipelines++] = wanted;
    else
        [wanted.state release];
    return code;
}

/* The device's pipeline of a record's variant, made when it is first asked for. */
static int find_pipeline(marlin_device *device, const marlin_record *record, int variant,
                         id<MTLComputePipelineState> *out)
{
    pipeline wanted = {.kernel_id = record->kernel_id};
    marlin_constants_of(record, variant, wanted.constants);
    int32_t i = 0;
    while (i < device->num_pipelines &&
           (device->pipelines[i].kernel_id != wanted.kernel_id ||
            memcmp(device->pipelines[i].constants, wanted.constants, sizeof wanted.constants) != 0))
        i++;
    int code = i < device->num_pipelines ? MARLIN_OK : add_pipeline(device, record, wanted);
    if (code == MARLIN_OK) *out = device->pipelines[i].state;
    return code;
}

/* ---- programs ---- */

static int add_step(marlin_program *program, int32_t index)
{
    const marlin_record *record = &program->records.items[index];
    step *s = &program->steps[index];
    uint8_t *constants = (uint8_t *)[program->constants contents] + (size_t)index * CONSTANT_STRIDE;
    memcpy(constants, record->params, sizeof record->params);
    marlin_call_words call = marlin_call_of(&program->records, index);
    memcpy(constants + CALL_OFFSET, &call, sizeof call);
    s->signpost =
        [[NSString alloc] initWithFormat:@"dispatch %d (%s)", index, record->kernel->name];
    int code = MARLIN_OK;
    for (int i = 0; i < marlin_num_variants(record->kernel_id) && code == MARLIN_OK; i++)
        code = find_pipeline(program->device, record, i, &s->states[i]);
    return code;
}

static int fill_program(marlin_program *program, const marlin_dispatch *records, int32_t count)
{
    int code = marlin_records_open(&program->records, program->device, records, count);
    if (code != MARLIN_OK) return code;
    program->steps = calloc((size_t)count, sizeof *program->steps);
    program->constants =
        [program->device->gpu newBufferWithLength:(NSUInteger)count * CONSTANT_STRIDE
                                          options:MTLResourceStorageModeShared];
    if (!program->steps || !program->constants)
        return marlin_fail(MARLIN_ENOMEM, "no memory for %d dispatches", count);
    for (int32_t i = 0; i < count && code == MARLIN_OK; i++) {
        @autoreleasepool {
            code = add_step(program, i);
        }
    }
    return code;
}

int marlin_program_create(marlin_device *device, const marlin_dispatch *records, int32_t count,
                          marlin_program **out)
{
    @autoreleasepool {
        if (!device || !records || !out || count < 1)
            return marlin_fail(MARLIN_EINVAL, "a program needs dispatches");
        marlin_program *program = calloc(1, sizeof *program);
        if (!program) return marlin_fail(MARLIN_ENOMEM, "no memory for a program");
        program->device = device;
        int code = fill_program(program, records, count);
        *out = code == MARLIN_OK ? program : NULL;
        if (code != MARLIN_OK) marlin_program_destroy(program);
        return code;
    }
}

void marlin_program_destroy(marlin_program *program)
{
    @autoreleasepool {
        if (!program) return;
        if (program->device->running == program) marlin_program_wait(program);
        for (int32_t i = 0; program->steps && i < program->records.count; i++)
            [program->steps[i].signpost release];
        free(program->steps);
        [program->constants release];
        marlin_records_close(&program->records);
        free(program);
    }
}

/* ---- replay ---- */

/* What the encoder has at an index already. */
typedef struct {
    id<MTLBuffer> buffer;
    NSUInteger offset;
} bound;

static void set_buffer(id<MTLComputeCommandEncoder> encoder, bound *now, id<MTLBuffer> buffer,
                       NSUInteger offset, NSUInteger index)
{
    if (now->buffer != buffer)
        [encoder setBuffer:buffer offset:offset atIndex:index];
    else if (now->offset != offset)
        [encoder setBufferOffset:offset atIndex:index];
    *now = (bound){buffer, offset};
}

static void bind_record(marlin_program *program, int32_t index,
                        id<MTLComputeCommandEncoder> encoder, bound *now)
{
    const marlin_record *record = &program->records.items[index];
    marlin_device *device = program->device;
    for (int i = 0; i < record->kernel->num_bindings; i++) {
        /* Metal takes no offset at a buffer's end; what is not touched may begin anywhere. */
        const marlin_buffer *buffer = &device->buffers.slots[record->buffer[i]];
        BOOL some = record->bytes[i] > 0 && (record->needed >> i & 1);
        NSUInteger offset = (NSUInteger)(buffer->object_offset + record->offset[i]);
        set_buffer(encoder, &now[i], some ? buffer->object : device->nothing, some ? offset : 0,
                   (NSUInteger)i);
    }
    NSUInteger constants = (NSUInteger)index * CONSTANT_STRIDE;
    set_buffer(encoder, &now[PARAMS_INDEX], program->constants, constants, PARAMS_INDEX);
    set_buffer(encoder, &now[CALL_INDEX], program->constants, constants + CALL_OFFSET, CALL_INDEX);
}

static void encode(marlin_program *program, id<MTLComputeCommandEncoder> encoder)
{
    const marlin_records *records = &program->records;
    bound now[STATUS_INDEX] = {{nil, 0}};
    BOOL flagged = NO, encoded = NO; /* since the last barrier */
    [encoder setBytes:records->vars length:sizeof records->vars atIndex:VARS_INDEX];
    [encoder setBuffer:program->device->status offset:0 atIndex:STATUS_INDEX];
    for (int32_t i = records->first; i < records->last; i++) {
        int64_t groups[3];
        int variant = marlin_launch_of(records, i, groups);
        flagged |= records->items[i].barrier != 0;
        if (variant < 0) continue;
        if (flagged && encoded) [encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
        flagged = NO;
        encoded = YES;
        bind_record(program, i, encoder, now);
        int32_t threads = marlin_launch_threads(&records->items[i]);
        [encoder setComputePipelineState:program->steps[i].states[variant]];
        [encoder insertDebugSignpost:program->steps[i].signpost];
        [encoder dispatchThreadgroups:MTLSizeMake((NSUInteger)groups[0], (NSUInteger)groups[1],
                                                  (NSUInteger)groups[2])
                threadsPerThreadgroup:MTLSizeMake((NSUInteger)threads, 1, 1)];
    }
}

int marlin_program_submit(marlin_program *program, int32_t first, int32_t count,
                          const int32_t *vars, int32_t num_vars)
{
    @autoreleasepool {
        if (!program) return marlin_fail(MARLIN_EINVAL, "no program");
        marlin_device *device = program->device;
        if (device->running) return marlin_fail(MARLIN_EBUSY, "a replay is in flight");
        int code = marlin_records_select(&program->records, first, count, vars, num_vars);
        if (code != MARLIN_OK) return code;
        if (device->residency_grew) request_residency(device);
        MTLCommandBufferDescriptor *descriptor = MAKE(MTLCommandBufferDescriptor);
        [descriptor setRetainedReferences:NO];
        [descriptor setErrorOptions:MTLCommandBufferErrorOptionEncoderExecutionStatus];
        id<MTLCommandBuffer> commands = [device->queue commandBufferWithDescriptor:descriptor];
        id<MTLComputeCommandEncoder> encoder =
            [commands computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
        if (!encoder) return marlin_fail(MARLIN_EDEVICE, "the GPU takes no commands");
        *(uint32_t *)[device->status contents] = STATUS_FINE;
        encode(program, encoder);
        [encoder endEncoding];
        program->commands = [commands retain];
        device->running = program;
        [commands commit];
        return MARLIN_OK;
    }
}

/* Metal keeps the signposts that a pass has reached: the last one is where it ended. */
static int fail_replay(const marlin_program *program, NSError *error)
{
    NSArray *passes = [[error userInfo] objectForKey:MTLCommandBufferEncoderInfoErrorKey];
    id<MTLCommandBufferEncoderInfo> pass = [passes lastObject];
    NSString *reached = [[pass debugSignposts] lastObject];
    if (reached)
        return marlin_fail(MARLIN_EDEVICE, "%.80s: the GPU failed: %.300s", [reached UTF8String],
                           text_of(error));
    const marlin_records *records = &program->records;
    return marlin_fail(MARLIN_EDEVICE, "dispatches [%d, %d), from %s on: the GPU failed: %.300s",
                       records->first, records->last, records->items[records->first].kernel->name,
                       text_of(error));
}

int marlin_program_wait(marlin_program *program)
{
    @autoreleasepool {
        if (!program || program->device->running != program)
            return marlin_fail(MARLIN_EINVAL, "this program has no replay in flight");
        id<MTLCommandBuffer> commands = [program->commands autorelease];
        program->commands = nil;
        [commands waitUntilCompleted];
        program->device->running = NULL;
        if ([commands status] != MTLCommandBufferStatusCompleted)
            return fail_replay(program, [commands error]);
        uint32_t status = *(const uint32_t *)[program->device->status contents];
        return status == STATUS_FINE ? MARLIN_OK
                                     : marlin_fail_index(&program->records, (int32_t)status);
    }
}
