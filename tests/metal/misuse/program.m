/* program.m: uses Metal correctly but for one mistake, whose name is the argument: program LIBRARY
 * MISTAKE. The simulated Metal must end the process for every one of them, as Metal's validation
 * layer does; "none" prints "fine". */
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { COUNT = 64 };

static const char *mistake;

static BOOL makes(const char *name) { return strcmp(mistake, name) == 0; }

typedef struct {
    float scale, offset;
} params;

typedef struct {
    id<MTLDevice> device;
    id<MTLCommandQueue> queue;
    id<MTLLibrary> library;
    id<MTLComputePipelineState> pipeline;
    id<MTLBuffer> a, b, c, d;
    id<MTLFence> fence;
    MTLCommandBufferDescriptor *descriptor;
} parts;

static parts open_parts(const char *path)
{
    parts all = {0};
    all.device = MTLCreateSystemDefaultDevice();
    all.queue = [all.device newCommandQueue];
    NSURL *url = [NSURL fileURLWithPath:[NSString stringWithUTF8String:path]];
    all.library = [all.device newLibraryWithURL:url error:NULL];
    MTLFunctionConstantValues *values = [[MTLFunctionConstantValues alloc] init];
    uint32_t times = 2;
    BOOL wrong = makes("a constant of another size");
    [values setConstantValue:&times type:wrong ? MTLDataTypeBool : MTLDataTypeUInt atIndex:0];
    id<MTLFunction> function = [all.library newFunctionWithName:@"scale"
                                                 constantValues:values
                                                          error:NULL];
    MTLComputePipelineDescriptor *descriptor = [[MTLComputePipelineDescriptor alloc] init];
    [descriptor setComputeFunction:function];
    all.pipeline = [all.device newComputePipelineStateWithDescriptor:descriptor
                                                             options:MTLPipelineOptionNone
                                                          reflection:NULL
                                                               error:NULL];
    [values release];
    [function release];
    [descriptor release];
    NSUInteger bytes = COUNT * sizeof(float);
    all.a = [all.device newBufferWithLength:bytes options:MTLResourceStorageModeShared];
    all.b = [all.device newBufferWithLength:bytes options:MTLResourceStorageModeShared];
    all.c = [all.device newBufferWithLength:bytes options:MTLResourceStorageModeShared];
    all.d = [all.device newBufferWithLength:bytes options:MTLResourceStorageModeShared];
    all.fence = [all.device newFence];
    all.descriptor = [[MTLCommandBufferDescriptor alloc] init];
    [all.descriptor setRetainedReferences:NO];
    return all;
}

static void wrap_memory(const parts *all)
{
    NSUInteger page = (NSUInteger)sysconf(_SC_PAGESIZE);
    void *memory = NULL;
    if (posix_memalign(&memory, page, 2 * page) != 0) abort();
    char *begin = memory;
    id<MTLBuffer> buffer =
        [all->device newBufferWithBytesNoCopy:begin + (makes("a pointer within a page") ? 64 : 0)
                                       length:makes("a length that is no page") ? page - 64 : page
                                      options:MTLResourceStorageModeShared
                                  deallocator:nil];
    [buffer release];
    free(memory);
}

static void set_arguments(const parts *all, id<MTLComputeCommandEncoder> encoder)
{
    params p = {3, 1};
    char huge[8192] = {0};
    BOOL unbound = makes("an unbound buffer"), past = makes("an offset past the end");
    if (!makes("no pipeline")) [encoder setComputePipelineState:all->pipeline];
    if (!unbound)
        [encoder setBuffer:all->a
                    offset:makes("an offset between floats") ? 2 : (past ? 4 * COUNT : 0)
                   atIndex:0];
    [encoder setBuffer:all->b offset:0 atIndex:1];
    if (makes("short bytes"))
        [encoder setBytes:&p length:4 atIndex:2];
    else if (makes("too many bytes"))
        [encoder setBytes:huge length:sizeof huge atIndex:2];
    else
        [encoder setBytes:&p length:sizeof p atIndex:2];
    if (makes("an offset of no buffer")) [encoder setBufferOffset:0 atIndex:7];
}

static void dispatch(id<MTLComputeCommandEncoder> encoder)
{
    NSUInteger threads = makes("too many threads") ? 2048 : COUNT;
    NSUInteger groups = makes("an empty grid") ? 0 : 1;
    [encoder dispatchThreadgroups:MTLSizeMake(groups, 1, 1)
            threadsPerThreadgroup:MTLSizeMake(threads, 1, 1)];
}

/* A second dispatch that depends on the first: reads what it wrote, writes it too, or writes what
 * it read. */
static void depend(const parts *all, id<MTLComputeCommandEncoder> encoder)
{
    BOOL none = makes("none");
    if (none) [encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
    if (makes("a barrier for textures")) [encoder memoryBarrierWithScope:MTLBarrierScopeTextures];
    BOOL reads = none || makes("a read after a write"), rewrites = makes("a write after a write");
    BOOL spoils = makes("a write after a read");
    if (!reads && !rewrites && !spoils) return;
    [encoder setBuffer:reads ? all->b : all->c offset:0 atIndex:0];
    [encoder setBuffer:rewrites ? all->b : (spoils ? all->a : all->c) offset:0 atIndex:1];
    dispatch(encoder);
}

/* A command buffer that reads what the one before it writes. */
static void follow(const parts *all)
{
    id<MTLCommandBuffer> commands = [all->queue commandBufferWithDescriptor:all->descriptor];
    id<MTLComputeCommandEncoder> encoder =
        [commands computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    if (!makes("no fence between command buffers")) [encoder waitForFence:all->fence];
    if (makes("a fence that the encoder updates itself")) {
        [encoder updateFence:all->fence];
        [encoder waitForFence:all->fence];
    }
    set_arguments(all, encoder);
    [encoder setBuffer:all->b offset:0 atIndex:0];
    [encoder setBuffer:all->d offset:0 atIndex:1];
    dispatch(encoder);
    [encoder endEncoding];
    [commands commit];
    [commands waitUntilCompleted];
}

static void run(parts *all)
{
    id<MTLCommandBuffer> commands = [all->queue commandBufferWithDescriptor:all->descriptor];
    if (makes("a wait before commit")) [commands waitUntilCompleted];
    id<MTLComputeCommandEncoder> encoder =
        [commands computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    if (makes("a second encoder"))
        [commands computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    set_arguments(all, encoder);
    dispatch(encoder);
    depend(all, encoder);
    if (makes("a commit while encoding")) [commands commit];
    if (makes("an encoder that is never ended")) return;
    [encoder updateFence:all->fence];
    [encoder endEncoding];
    if (makes("encoding after the end")) dispatch(encoder);
    [commands commit];
    if (makes("a second commit")) [commands commit];
    if (makes("encoding after commit"))
        [commands computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    if (makes("a buffer freed in flight")) [all->a release];
    if (makes("a pipeline freed in flight")) [all->pipeline release];
    follow(all);
    [commands waitUntilCompleted];
}

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    mistake = argv[2];
    @autoreleasepool {
        parts all = open_parts(argv[1]);
        wrap_memory(&all);
        @autoreleasepool {
            run(&all);
        }
        /* b = 0 * 3 * 2 + 1, c = b * 3 * 2 + 1, d = b * 3 * 2 + 1 */
        const float *c = [all.c contents], *d = [all.d contents];
        puts(c[0] == 7 && c[COUNT - 1] == 7 && d[0] == 7 ? "fine" : "wrong");
    }
    return 0;
}
