/* sim.h: a simulated Metal: classes that implement the protocols of include/Metal/Metal.h.
 *
 * A .metallib is here a library for the CPU runtime (tests/metal/msl), which runs the unmodified
 * shaders. Commands are recorded while they are encoded and run later on the queue's own thread, so
 * that mistakes about lifetime and order show as they would on a GPU. What Metal's validation layer
 * rejects ends the process with "simulated Metal: misuse: ..."; so does a dispatch that depends on
 * another without a barrier between them, which a real GPU would silently get wrong.
 *
 * The environment, read when it is needed:
 *   SIMMETAL_NO_DEVICE=1         no GPU at all; 2: none is the default, and one in the list
 *   SIMMETAL_NAME=text           what the GPU is called
 *   SIMMETAL_NO_ARCHITECTURE=1   the GPU does not tell its architecture
 *   SIMMETAL_FAMILY=n            newest Apple family (9); below 7 it is too old for us
 *   SIMMETAL_WORKING_SET=bytes   recommendedMaxWorkingSetSize (8 GiB)
 *   SIMMETAL_MAX_BUFFER=bytes    maxBufferLength (4 GiB)
 *   SIMMETAL_MAX_THREADS=n       what a kernel's registers leave room for (1024)
 *   SIMMETAL_OLD_OS=1            macOS 14: no residency sets
 *   SIMMETAL_NIL_PIPELINE=name   a kernel whose pipeline cannot be made
 *   SIMMETAL_FAIL=n[:timeout]    dispatch n of each command buffer, from 0, faults or never ends
 *   SIMMETAL_DELAY_US=n          how long the GPU is busy before it begins
 *   SIMMETAL_ORDER=forward       dispatches that no barrier and command buffers that no fence
 * orders run in the order of encoding, not backwards SIMMETAL_CLOCK=name:ns,...   kernels whose
 * names begin so do not run: each of their threadgroups takes so many nanoseconds on a clock of its
 * own, which GPUStartTime and GPUEndTime tell SIMMETAL_KILL_MS=n           a command buffer that
 * takes longer by that clock is ended, as macOS does, with the dispatches that it had left
 *   SIMMETAL_COMPILER=command    run as `command SOURCE OUT` by newLibraryWithSource:
 *   SIMMETAL_HAZARDS=0           let dispatches depend on each other without a barrier
 *   SIMMETAL_EXTENTS=b:o:n       the constant at buffer index b has, from byte o on, how many words
 *                                each of the bindings 0 to n - 1 holds; only those are looked at
 * for hazards. Without it every buffer is, up to its end. */
#ifndef SIM_H
#define SIM_H

#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#include <pthread.h>

#include "msl_rt.h"

#define MAX_BUFFERS 31
#define MAX_SETBYTES 4096

/* End the process as Metal's validation layer does. */
void sim_misuse(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
#define EXPECT(holds, ...)                                                                         \
    do {                                                                                           \
        if (!(holds)) sim_misuse(__VA_ARGS__);                                                     \
    } while (0)

/* A number of the environment, or what it is when not set. */
long long sim_setting(const char *name, long long otherwise);
NSError *sim_error(NSString *domain, NSInteger code, NSString *text);

/* For tests, through ctypes: objects alive, bytes of buffers, events since the process began. */
__attribute__((visibility("default"))) long sim_live_objects(void);
__attribute__((visibility("default"))) long sim_live_bytes(void);
enum {
    SIM_COMPILED,
    SIM_FROM_ARCHIVE,
    SIM_SET_BUFFER,
    SIM_BARRIER,
    SIM_RESIDENT,
    SIM_REQUESTED,
    SIM_SAVED,
    SIM_COMMITTED,
    SIM_BLITS,
    SIM_DISPATCHED,
    NUM_SIM_COUNTS
};
__attribute__((visibility("default"))) long sim_counted(int event);
void sim_count(int event, long by);

/* Whatever Metal hands out. A command buffer without references of its own counts in `_uses`: an
 * object that ends while they are not 0 was freed in flight. */
@interface SimObject : NSObject {
  @public
    NSString *_label;
    id<MTLDevice> _device;
    long _uses;
}
- (NSString *)label;
- (void)setLabel:(NSString *)label;
- (id<MTLDevice>)device;
- (void)simUse:(long)by;
@end

@interface SimBuffer : SimObject <MTLBuffer> {
  @public
    uint8_t *_memory;
    NSUInteger _length;
    BOOL _owned;
    MTLResourceOptions _options;
    void (^_deallocator)(void *, NSUInteger);
}
@end

@interface SimLibrary : SimObject <MTLLibrary> {
  @public
    msl_library *_library; /* loaded for good: the runtime closes none */
}
@end

@interface SimFunction : SimObject <MTLFunction> {
  @public
    SimLibrary *_library;
    int _index;
    NSDictionary *_constants; /* NSNumber index to NSData */
}
/* Name and constants: the same for the same code. */
- (NSString *)simKey;
/* Run one dispatch of it; nil or what went wrong. */
- (NSString *)simRun:(const msl_dispatch_info *)info;
@end

@interface SimPipeline : SimObject <MTLComputePipelineState> {
  @public
    SimFunction *_function;
}
@end

@interface SimArchive : SimObject <MTLBinaryArchive> {
  @public
    NSMutableSet *_keys;
}
@end

@interface SimResidencySet : SimObject <MTLResidencySet> {
  @public
    NSMutableSet *_members, *_pending;
    BOOL _changed;
}
@end

@interface MTLFunctionConstantValues (Sim)
- (NSDictionary *)simValues;
@end

/* ---- commands ---- */

/* What a dispatch may touch. */
typedef struct {
    const uint8_t *begin, *end;
    int writes;
    int binding;
    const char *kernel;
} sim_range;

typedef struct {
    SimPipeline *pipeline;
    msl_dispatch_info info;
    SimObject *used[MAX_BUFFERS]; /* buffers by index */
    NSData *bytes[MAX_BUFFERS];   /* what setBytes: copied */
    NSArray *signposts;           /* of the pass so far */
    int barrier_after;
    sim_range ranges[MAX_BUFFERS];
    int num_ranges;
} sim_command;

@class SimQueue, SimCommandBuffer;

@interface SimFence : SimObject <MTLFence> {
  @public
    SimCommandBuffer *_updater; /* the last one committed that updates it; not retained */
}
@end

@interface SimCommandBuffer : SimObject <MTLCommandBuffer> {
  @public
    sim_command *_commands;
    size_t _count, _capacity;
    MTLCommandBufferStatus _status;
    NSError *_error;
    double _started, _ended, _clocked;
    SimQueue *_queue;
    id _encoder; /* the one that is open, not retained */
    NSMutableArray *_handlers;
    BOOL _retains, _explains;
    NSMutableArray *_fences;  /* that it waits for */
    NSMutableArray *_updates; /* fences that it updates */
    NSMutableSet *_before;    /* SimCommandBuffers that fences have end first */
    sim_range *_ranges;       /* of all commands, kept until it is waited for */
    size_t _num_ranges;
}
- (void)simRun;
- (BOOL)simMayRun;
/* Take or give up what a command refers to: a reference or a use of each object. */
- (void)simHold:(sim_command *)command by:(long)by;
@end

/* What the queue's thread works with. It outlives the SimQueue: the last reference to a command
 * buffer, and with it to the queue, may be dropped on that thread, which then touches neither. */
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t work, idle;
    NSMutableArray *waiting;
    NSMutableArray *loose; /* committed, and nobody has waited for them or what comes after */
    SimCommandBuffer *current;
    BOOL stop;
    int references;
    double clock; /* SIMMETAL_CLOCK's */
    int num_killed;
} sim_queue_state;

@interface SimQueue : SimObject <MTLCommandQueue> {
  @public
    pthread_t _thread;
    sim_queue_state *_state;
}
- (void)simPush:(SimCommandBuffer *)commands;
@end

@interface SimEncoder : SimObject <MTLComputeCommandEncoder> {
  @public
    SimCommandBuffer *_commands;
    BOOL _ended, _concurrent;
    SimPipeline *_pipeline;
    SimBuffer *_buffers[MAX_BUFFERS];
    NSUInteger _offsets[MAX_BUFFERS];
    NSData *_bytes[MAX_BUFFERS];
    NSMutableArray *_signposts;
    size_t _ordered; /* commands before this one are behind a barrier */
}
@end

/* Fills buffers at once: nothing that runs reads them. */
@interface SimBlitEncoder : SimObject <MTLBlitCommandEncoder>
@end

/* Find what a command touches, from its kernel's arguments (hazards.m). */
void sim_find_ranges(sim_command *command);
/* Misuse if the last command depends on one of [first, count - 1). */
void sim_check_hazards(const sim_command *commands, size_t first, size_t count);
/* Misuse if a command buffer depends on another, which no fence orders before it. */
void sim_check_fences(const SimCommandBuffer *earlier, const SimCommandBuffer *later);

@interface SimDevice : SimObject <MTLDevice>
@end

/* Buffers (resources.m): nil when the device has no room. */
SimBuffer *sim_create_buffer(SimDevice *device, NSUInteger length, MTLResourceOptions options);
SimBuffer *sim_wrap_buffer(SimDevice *device, void *pointer, NSUInteger length,
                           MTLResourceOptions options, void (^deallocator)(void *, NSUInteger));

#endif
