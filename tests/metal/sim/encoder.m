/* encoder.m: the compute encoder: what is bound, and the commands that dispatches become. */
#import "sim.h"
#include <stdlib.h>
#include <string.h>

@implementation SimEncoder

- (id)init
{
    if ((self = [super init])) _signposts = [[NSMutableArray alloc] init];
    return self;
}

- (void)dealloc
{
    EXPECT(_ended, "a command encoder was released before endEncoding");
    for (int i = 0; i < MAX_BUFFERS; i++) [_bytes[i] release];
    [_signposts release];
    [_commands release];
    [super dealloc];
}

- (void)simOpen
{
    EXPECT(!_ended, "encoding after endEncoding");
}

- (void)setComputePipelineState:(id<MTLComputePipelineState>)state
{
    [self simOpen];
    EXPECT(state, "setComputePipelineState: nil");
    _pipeline = (SimPipeline *)state;
}

- (void)setBytes:(const void *)bytes length:(NSUInteger)length atIndex:(NSUInteger)index
{
    [self simOpen];
    EXPECT(index < MAX_BUFFERS, "setBytes: index %lu", (unsigned long)index);
    EXPECT(bytes && length > 0 && length <= MAX_SETBYTES, "setBytes: length %lu is not 1 to %d",
           (unsigned long)length, MAX_SETBYTES);
    [_bytes[index] release];
    _bytes[index] = [[NSData alloc] initWithBytes:bytes length:length];
    _buffers[index] = nil;
}

- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index
{
    [self simOpen];
    EXPECT(index < MAX_BUFFERS, "setBuffer: index %lu", (unsigned long)index);
    EXPECT(!buffer || offset < [buffer length], "setBuffer: offset %lu is past the end (%lu)",
           (unsigned long)offset, (unsigned long)[buffer length]);
    sim_count(SIM_SET_BUFFER, 1);
    _buffers[index] = (SimBuffer *)buffer;
    _offsets[index] = offset;
    [_bytes[index] release];
    _bytes[index] = nil;
}

- (void)setBufferOffset:(NSUInteger)offset atIndex:(NSUInteger)index
{
    [self simOpen];
    EXPECT(index < MAX_BUFFERS && _buffers[index], "setBufferOffset: no buffer at %lu",
           (unsigned long)index);
    EXPECT(offset < [_buffers[index] length], "setBufferOffset: %lu is past the end (%lu)",
           (unsigned long)offset, (unsigned long)[_buffers[index] length]);
    _offsets[index] = offset;
}

/* What the kernel declares must be bound, long enough and aligned. */
- (void)simCheckArguments:(const msl_dispatch_info *)info
{
    SimFunction *function = _pipeline->_function;
    msl_library *library = function->_library->_library;
    const char *kernel = [[function name] UTF8String];
    for (int i = 0; i < msl_kernel_nargs(library, function->_index); i++) {
        int argument[6];
        const char *name = msl_kernel_arg(library, function->_index, i, argument);
        int index = argument[1];
        if (argument[0] != 0) continue;
        const msl_binding *bound = &info->buffers[index];
        EXPECT(bound->ptr, "%s: buffer %d (%s) is not bound", kernel, index, name);
        EXPECT(!argument[4] || bound->length >= (size_t)argument[2],
               "%s: buffer %d (%s) has %lu bytes, the kernel reads %d", kernel, index, name,
               (unsigned long)bound->length, argument[2]);
        EXPECT((uintptr_t)bound->ptr % (uintptr_t)argument[3] == 0,
               "%s: buffer %d (%s) begins where a value of alignment %d cannot", kernel, index,
               name, argument[3]);
    }
}

- (void)simBind:(sim_command *)command
{
    for (int i = 0; i < MAX_BUFFERS; i++) {
        msl_binding *binding = &command->info.buffers[i];
        if (_buffers[i]) {
            command->used[i] = _buffers[i];
            binding->ptr = _buffers[i]->_memory + _offsets[i];
            binding->length = _buffers[i]->_length - _offsets[i];
        } else if (_bytes[i]) {
            command->bytes[i] = [_bytes[i] retain];
            binding->ptr = (void *)[_bytes[i] bytes];
            binding->length = [_bytes[i] length];
        }
    }
}

- (void)dispatchThreadgroups:(MTLSize)groups threadsPerThreadgroup:(MTLSize)threads
{
    [self simOpen];
    EXPECT(_pipeline, "a dispatch without a pipeline");
    NSUInteger total = threads.width * threads.height * threads.depth;
    NSUInteger most = [_pipeline maxTotalThreadsPerThreadgroup];
    EXPECT(total > 0 && total <= most, "%lu threads a threadgroup, the pipeline takes 1 to %lu",
           (unsigned long)total, (unsigned long)most);
    EXPECT(groups.width && groups.height && groups.depth, "a grid with no threadgroups");
    sim_count(SIM_DISPATCHED, 1);
    SimCommandBuffer *commands = _commands;
    if (commands->_count == commands->_capacity) {
        commands->_capacity = commands->_capacity * 2 + 16;
        commands->_commands =
            realloc(commands->_commands, commands->_capacity * sizeof(sim_command));
    }
    sim_command *command = &commands->_commands[commands->_count++];
    *command = (sim_command){.pipeline = _pipeline, .barrier_after = !_concurrent};
    command->info = (msl_dispatch_info){
        .grid = {(uint32_t)groups.width, (uint32_t)groups.height, (uint32_t)groups.depth},
        .tpt = {(uint32_t)threads.width, (uint32_t)threads.height, (uint32_t)threads.depth}};
    [self simBind:command];
    [self simCheckArguments:&command->info];
    [commands simHold:command by:1];
    command->signposts = [_signposts copy];
    sim_find_ranges(command);
    if (_concurrent && sim_setting("SIMMETAL_HAZARDS", 1))
        sim_check_hazards(commands->_commands, _ordered, commands->_count);
}

- (void)memoryBarrierWithScope:(MTLBarrierScope)scope
{
    [self simOpen];
    EXPECT(scope & MTLBarrierScopeBuffers, "a barrier of scope %lu orders no buffers",
           (unsigned long)scope);
    sim_count(SIM_BARRIER, 1);
    _ordered = _commands->_count;
    if (_commands->_count) _commands->_commands[_commands->_count - 1].barrier_after = 1;
}

/* What this encoder waits for, every one of its commands does; what it updates, all of them come
 * before. */
- (void)waitForFence:(id<MTLFence>)fence
{
    [self simOpen];
    EXPECT(fence, "waitForFence: nil");
    EXPECT(![_commands->_updates containsObject:fence],
           "waitForFence: the encoder has updated that fence itself");
    [_commands->_fences addObject:fence];
}

- (void)updateFence:(id<MTLFence>)fence
{
    [self simOpen];
    EXPECT(fence, "updateFence: nil");
    [_commands->_updates addObject:fence];
}

- (void)insertDebugSignpost:(NSString *)string
{
    [self simOpen];
    [_signposts addObject:string];
}

- (void)endEncoding
{
    [self simOpen];
    _ended = YES;
    if (_commands->_count) _commands->_commands[_commands->_count - 1].barrier_after = 1;
    _commands->_encoder = nil;
}

@end

@implementation SimBlitEncoder

- (void)fillBuffer:(id<MTLBuffer>)buffer range:(NSRange)range value:(uint8_t)value
{
    EXPECT(range.length && range.location + range.length <= [buffer length],
           "fillBuffer: a range that is empty or past the end");
    memset((uint8_t *)[buffer contents] + range.location, value, range.length);
    sim_count(SIM_BLITS, 1);
}

- (void)insertDebugSignpost:(NSString *)string
{
    (void)string;
}

- (void)endEncoding
{
}

@end
