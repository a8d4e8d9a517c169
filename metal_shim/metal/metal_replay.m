/* metal_replay.m: programs on the Metal device, and their replay: what is bound, where command
 * buffers are cut, and what came of them.
 *
 * macOS ends a command buffer that keeps the GPU from the display for long, and after a few such
 * refuses the process for good. So a replay is cut into segments, a command buffer each, of about
 * SEGMENT_SECONDS by metal_cost.c's estimate times the device's pace, which measured times set. Two
 * are in flight at most, so that a first one that is too long is the last one.
 * A replay that asks for what the one before it asked for, as one decode step after another does,
 * is encoded while that one runs, and committed when it is asked for.
 * Buffers are not tracked, so command buffers could overlap: each updates the device's fence at its
 * end, and waits for it at its beginning. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "metal/metal_objects.h"

/* A dispatch's bytes of its program's constants: its parameters, then its call. Apple's GPUs want
 * offsets of constants to be multiples of 4. */
#define CONSTANT_STRIDE 256
#define CALL_OFFSET 128
/* The status word of a replay in which no kernel met an index outside its buffers. */
#define STATUS_FINE UINT32_MAX
/* macOS has ended buffers of 1 to 5 seconds; one that ends within this lets a display be drawn ten
 * times a second. A boundary costs about 20 us of GPU time. */
#define SEGMENT_SECONDS 0.08
/* One runs, one waits behind it. */
#define SEGMENTS_IN_FLIGHT 2
/* Segments shorter than this tell of launches, not of a GPU's speed. */
#define MEASURED_SECONDS 0.002
/* Bounds of what measured times may make of the estimate: other work delays ours, too. */
#define LEAST_PACE 0.02
#define MOST_PACE 10000

/* What a dispatch runs; states[0] alone unless the kernel has ROWS. */
typedef struct {
    id<MTLComputePipelineState> states[NUM_ROWS];
    NSString *signpost;
} step;

/* What a replay asks for. */
typedef struct {
    int32_t first, last;
    int32_t vars[MARLIN_MAX_VARS];
} selection;

/* A command buffer of a replay. */
typedef struct {
    id<MTLCommandBuffer> commands; /* retained */
    double estimate;               /* seconds, before the device's pace */
} segment;

struct marlin_program {
    marlin_device *device;
    marlin_records records;
    step *steps;
    id<MTLBuffer> constants;
    /* Of the replay in flight: number i is segments[i % SEGMENTS_IN_FLIGHT]. */
    segment segments[SEGMENTS_IN_FLIGHT];
    int32_t num_begun, num_finished;
    double ended;     /* when the last one that finished did, on the GPU's clock */
    NSString *failed; /* why one failed, retained; nil: none did */
    selection asked;  /* last */
    BOOL repeats;     /* it was asked for twice in a row */
    segment ahead;    /* the whole of `asked`, encoded and not committed; no commands: it is not */
};

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
        code = marlin_find_pipeline(program->device, record, i, &s->states[i]);
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

void marlin_drop_ahead(marlin_device *device)
{
    if (!device->ahead) return;
    [device->ahead->ahead.commands release];
    device->ahead->ahead.commands = nil;
    device->ahead = NULL;
}

void marlin_program_destroy(marlin_program *program)
{
    @autoreleasepool {
        if (!program) return;
        if (program->device->running == program) marlin_program_wait(program);
        if (program->device->ahead == program) marlin_drop_ahead(program->device);
        for (int32_t i = 0; program->steps && i < program->records.count; i++)
            [program->steps[i].signpost release];
        free(program->steps);
        [program->constants release];
        marlin_records_close(&program->records);
        free(program);
    }
}

/* ---- what a pass encodes ---- */

/* What the encoder has at an index already. */
typedef struct {
    id<MTLBuffer> buffer;
    NSUInteger offset;
} bound;

/* A replay being encoded: its last segment, which is not committed yet. */
typedef struct {
    marlin_program *program;
    id<MTLCommandBuffer> commands;
    id<MTLComputeCommandEncoder> encoder; /* nil: no segment is open */
    bound now[STATUS_INDEX];
    BOOL flagged; /* a record asked for a barrier that is not encoded yet */
    BOOL encoded; /* the segment has a dispatch */
    BOOL ahead;   /* of a replay that nobody has asked for yet */
    double estimate;
} pass;

static void set_buffer(pass *p, id<MTLBuffer> buffer, NSUInteger offset, NSUInteger index)
{
    bound *now = &p->now[index];
    if (now->buffer != buffer)
        [p->encoder setBuffer:buffer offset:offset atIndex:index];
    else if (now->offset != offset)
        [p->encoder setBufferOffset:offset atIndex:index];
    *now = (bound){buffer, offset};
}

static void bind_record(pass *p, int32_t index)
{
    const marlin_program *program = p->program;
    const marlin_record *record = &program->records.items[index];
    marlin_device *device = program->device;
    for (int i = 0; i < record->kernel->num_bindings; i++) {
        /* Metal takes no offset at a buffer's end; what is not touched may begin anywhere. */
        const marlin_buffer *buffer = &device->buffers.slots[record->buffer[i]];
        BOOL some = record->bytes[i] > 0 && (record->needed >> i & 1);
        NSUInteger offset = (NSUInteger)(buffer->object_offset + record->offset[i]);
        set_buffer(p, some ? buffer->object : device->nothing, some ? offset : 0, (NSUInteger)i);
    }
    NSUInteger constants = (NSUInteger)index * CONSTANT_STRIDE;
    set_buffer(p, program->constants, constants, PARAMS_INDEX);
    set_buffer(p, program->constants, constants + CALL_OFFSET, CALL_INDEX);
}

static void set_vars(pass *p, const int32_t *vars)
{
    [p->encoder setBytes:vars length:MARLIN_MAX_VARS * sizeof *vars atIndex:VARS_INDEX];
}

/* ---- segments ---- */

/* Slower at once, faster little by little: what is cut too long may be ended by the system. */
static void keep_pace(marlin_device *device, double estimate, double seconds)
{
    double found = seconds / estimate;
    double pace = found > device->pace ? found : 0.5 * device->pace + 0.5 * found;
    device->pace = pace < LEAST_PACE ? LEAST_PACE : pace > MOST_PACE ? MOST_PACE : pace;
}

/* Metal keeps the signposts that a pass has reached: the last one is where it ended. */
static NSString *failure_of(const marlin_program *program, NSError *error)
{
    NSArray *passes = [[error userInfo] objectForKey:MTLCommandBufferEncoderInfoErrorKey];
    id<MTLCommandBufferEncoderInfo> info = [passes lastObject];
    NSString *reached = [[info debugSignposts] lastObject];
    const marlin_records *records = &program->records;
    if (reached)
        return [[NSString alloc]
            initWithFormat:@"%s: the GPU failed: %s", [reached UTF8String], text_of(error)];
    return [[NSString alloc]
        initWithFormat:@"dispatches [%d, %d), from %s on: the GPU failed: %s", records->first,
                       records->last, records->items[records->first].kernel->name, text_of(error)];
}

/* Wait for the oldest segment that is in flight. */
static void finish_segment(marlin_program *program)
{
    segment *oldest = &program->segments[program->num_finished++ % SEGMENTS_IN_FLIGHT];
    marlin_device *device = program->device;
    id<MTLCommandBuffer> commands = [oldest->commands autorelease];
    oldest->commands = nil;
    [commands waitUntilCompleted];
    if ([commands status] != MTLCommandBufferStatusCompleted) {
        if (program->failed) return;
        program->failed = failure_of(program, [commands error]);
        device->explains = YES;
        keep_pace(device, 1, 4 * device->pace); /* whatever it was: shorter ones end less often */
        return;
    }
    /* It may have begun while it waited for the one before. */
    double began = [commands GPUStartTime], ended = [commands GPUEndTime];
    double seconds = ended - (began > program->ended ? began : program->ended);
    program->ended = ended;
    if (seconds > MEASURED_SECONDS && oldest->estimate > 0)
        keep_pace(device, oldest->estimate, seconds);
}

static void finish_replay(marlin_program *program)
{
    while (program->num_finished < program->num_begun) finish_segment(program);
    program->device->running = NULL;
}

static int begin_segment(pass *p)
{
    marlin_program *program = p->program;
    if (!p->ahead && program->num_begun - program->num_finished == SEGMENTS_IN_FLIGHT)
        finish_segment(program);
    MTLCommandBufferDescriptor *descriptor = MAKE(MTLCommandBufferDescriptor);
    [descriptor setRetainedReferences:NO];
    /* Takes time on the CPU (Apple's documentation), so not before something has failed. */
    if (program->device->explains)
        [descriptor setErrorOptions:MTLCommandBufferErrorOptionEncoderExecutionStatus];
    p->commands = [program->device->queue commandBufferWithDescriptor:descriptor];
    p->encoder = [p->commands computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    if (!p->encoder) return marlin_fail(MARLIN_EDEVICE, "the GPU takes no commands");
    if (program->num_begun > 0 && !p->ahead) [p->encoder waitForFence:program->device->fence];
    memset(p->now, 0, sizeof p->now);
    set_vars(p, program->records.vars);
    [p->encoder setBuffer:program->device->status offset:0 atIndex:STATUS_INDEX];
    p->flagged = p->encoded = NO;
    p->estimate = 0;
    return MARLIN_OK;
}

static void commit_segment(marlin_program *program, segment what)
{
    program->segments[program->num_begun++ % SEGMENTS_IN_FLIGHT] = what;
    [what.commands commit];
}

static segment close_segment(pass *p)
{
    [p->encoder updateFence:p->program->device->fence];
    [p->encoder endEncoding];
    p->encoder = nil;
    return (segment){[p->commands retain], p->estimate};
}

static void end_segment(pass *p) { commit_segment(p->program, close_segment(p)); }

/* Open a segment in which there is room for an estimate; an empty one has room for anything. */
static int make_room(pass *p, double estimate)
{
    double pace = p->program->device->pace;
    if (!p->encoded || (p->estimate + estimate) * pace <= SEGMENT_SECONDS) return MARLIN_OK;
    end_segment(p);
    return begin_segment(p);
}

/* ---- dispatches ---- */

/* A dispatch, or a part of one. */
typedef struct {
    int32_t index;
    int variant;
    int64_t groups[3];
    double estimate;
} launch;

static void encode_launch(pass *p, const launch *what)
{
    const marlin_record *record = &p->program->records.items[what->index];
    const step *s = &p->program->steps[what->index];
    const int64_t *groups = what->groups;
    if (p->flagged && p->encoded) [p->encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
    p->flagged = NO;
    p->encoded = YES;
    p->estimate += what->estimate;
    [p->encoder setComputePipelineState:s->states[what->variant]];
    if (p->program->device->explains) [p->encoder insertDebugSignpost:s->signpost];
    [p->encoder dispatchThreadgroups:MTLSizeMake((NSUInteger)groups[0], (NSUInteger)groups[1],
                                                 (NSUInteger)groups[2])
               threadsPerThreadgroup:MTLSizeMake((NSUInteger)marlin_launch_threads(record), 1, 1)];
}

/* A dispatch that is longer than a segment, in parts: of its tiles, which know nothing of each
 * other, each sees as many as one segment has time for. */
static int encode_tiles(pass *p, launch what, int32_t num_tiles)
{
    const marlin_records *records = &p->program->records;
    const marlin_record *record = &records->items[what.index];
    const struct AttentionParams *params = (const void *)record->params;
    const marlin_buffer *tiles = &p->program->device->buffers.slots[record->buffer[4]];
    int code = MARLIN_OK;
    for (int32_t first = 0, last; first < num_tiles && !p->program->failed; first = last) {
        what.estimate = marlin_tile_seconds(records, what.index, first);
        for (last = first + 1; last < num_tiles; last++) {
            double more = marlin_tile_seconds(records, what.index, last);
            if ((what.estimate + more) * p->program->device->pace > SEGMENT_SECONDS) break;
            what.estimate += more;
        }
        code = make_room(p, what.estimate);
        if (code != MARLIN_OK) return code;
        int32_t vars[MARLIN_MAX_VARS];
        memcpy(vars, records->vars, sizeof vars);
        vars[params->tiles_var] = last - first;
        set_vars(p, vars);
        bind_record(p, what.index);
        int64_t offset = tiles->object_offset + record->offset[4] + 16 * (int64_t)first;
        set_buffer(p, tiles->object, (NSUInteger)offset, 4);
        what.groups[0] = last - first;
        encode_launch(p, &what);
        p->flagged = YES; /* parts declare the same output; few share a segment */
    }
    set_vars(p, records->vars);
    return code;
}

static int encode_record(pass *p, int32_t index)
{
    const marlin_records *records = &p->program->records;
    launch what = {.index = index, .estimate = marlin_launch_seconds(records, index)};
    what.variant = marlin_launch_of(records, index, what.groups);
    p->flagged |= records->items[index].barrier != 0;
    if (what.variant < 0) return MARLIN_OK;
    int32_t num_tiles = marlin_launch_tiles(records, index);
    if (num_tiles > 1 && what.estimate * p->program->device->pace > SEGMENT_SECONDS)
        return encode_tiles(p, what, num_tiles);
    int code = make_room(p, what.estimate);
    if (code != MARLIN_OK) return code;
    bind_record(p, index);
    encode_launch(p, &what);
    return MARLIN_OK;
}

/* ---- ahead ---- */

/* Whether a replay is one segment, whatever its buffers hold. */
static BOOL fits_a_segment(const marlin_program *program)
{
    double estimate = 0;
    for (int32_t i = program->records.first; i < program->records.last; i++) {
        if (marlin_launch_tiles(&program->records, i) > 0) return NO;
        estimate += marlin_launch_seconds(&program->records, i);
    }
    return estimate * program->device->pace <= SEGMENT_SECONDS;
}

/* Encode again what is being waited for. It is no error if that does not succeed: who asks for it
 * finds out. */
static void encode_ahead(marlin_program *program)
{
    if (!program->repeats || program->failed || program->device->explains) return;
    if (!fits_a_segment(program)) return;
    pass p = {.program = program, .ahead = YES};
    int code = begin_segment(&p);
    for (int32_t i = program->records.first; i < program->records.last && code == MARLIN_OK; i++)
        code = encode_record(&p, i);
    if (code != MARLIN_OK) {
        [p.encoder endEncoding];
        return;
    }
    marlin_drop_ahead(program->device);
    program->ahead = close_segment(&p);
    program->device->ahead = program;
}

/* Note what is asked for. Whether it had been encoded and is committed now. */
static BOOL commit_ahead(marlin_program *program)
{
    marlin_device *device = program->device;
    selection now = {.first = program->records.first, .last = program->records.last};
    memcpy(now.vars, program->records.vars, sizeof now.vars);
    program->repeats = memcmp(&now, &program->asked, sizeof now) == 0;
    program->asked = now;
    if (device->ahead != program) return NO;
    segment ahead = program->ahead;
    BOOL takes =
        program->repeats && !device->explains && ahead.estimate * device->pace <= SEGMENT_SECONDS;
    if (takes) commit_segment(program, (segment){[ahead.commands retain], ahead.estimate});
    marlin_drop_ahead(device);
    return takes;
}

/* ---- replay ---- */

int marlin_program_submit(marlin_program *program, int32_t first, int32_t count,
                          const int32_t *vars, int32_t num_vars)
{
    @autoreleasepool {
        if (!program) return marlin_fail(MARLIN_EINVAL, "no program");
        marlin_device *device = program->device;
        if (device->running) return marlin_fail(MARLIN_EBUSY, "a replay is in flight");
        int code = marlin_records_select(&program->records, first, count, vars, num_vars);
        if (code != MARLIN_OK) return code;
        if (device->residency_grew) marlin_request_residency(device);
        marlin_begin_activity(device);
        *(uint32_t *)[device->status contents] = STATUS_FINE;
        program->num_begun = program->num_finished = 0;
        program->ended = 0;
        device->running = program;
        if (commit_ahead(program)) return MARLIN_OK;
        pass p = {.program = program};
        code = begin_segment(&p);
        int32_t i = program->records.first;
        while (i < program->records.last && code == MARLIN_OK && !program->failed)
            code = encode_record(&p, i++);
        if (program->failed)
            [p.encoder endEncoding]; /* and is dropped: nothing runs behind what failed */
        else if (p.encoder)
            end_segment(&p);
        if (code != MARLIN_OK) finish_replay(program);
        return code;
    }
}

int marlin_program_wait(marlin_program *program)
{
    @autoreleasepool {
        if (!program || program->device->running != program)
            return marlin_fail(MARLIN_EINVAL, "this program has no replay in flight");
        encode_ahead(program);
        finish_replay(program);
        NSString *failed = [program->failed autorelease];
        program->failed = nil;
        if (failed) return marlin_fail(MARLIN_EDEVICE, "%.400s", [failed UTF8String]);
        uint32_t status = *(const uint32_t *)[program->device->status contents];
        return status == STATUS_FINE ? MARLIN_OK
                                     : marlin_fail_index(&program->records, (int32_t)status);
    }
}
