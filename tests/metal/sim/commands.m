/* commands.m: command buffers and the queue whose thread runs them. */
#import "sim.h"
#include <Block.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

NSString *const MTLCommandBufferEncoderInfoErrorKey = @"MTLCommandBufferEncoderInfoErrorKey";

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* ---- what an error says of a pass ---- */

@interface SimPassInfo : NSObject <MTLCommandBufferEncoderInfo> {
  @public
    NSArray *_signposts;
}
@end

@implementation SimPassInfo

- (NSString *)label
{
    return nil;
}

- (NSArray *)debugSignposts
{
    return _signposts;
}

- (MTLCommandEncoderErrorState)errorState
{
    return MTLCommandEncoderErrorStateFaulted;
}

- (void)dealloc
{
    [_signposts release];
    [super dealloc];
}

@end

/* ---- fences ---- */

/* Which command buffer updates a fence, and what comes before what. */
static pthread_mutex_t fences_mutex = PTHREAD_MUTEX_INITIALIZER;

@implementation SimFence
@end

/* ---- command buffers ---- */

@implementation SimCommandBuffer

- (id)init
{
    if ((self = [super init])) {
        _handlers = [[NSMutableArray alloc] init];
        _fences = [[NSMutableArray alloc] init];
        _updates = [[NSMutableArray alloc] init];
        _before = [[NSMutableSet alloc] init];
    }
    return self;
}

- (void)simHold:(sim_command *)command by:(long)by
{
    SimObject *pipeline = command->pipeline;
    for (int i = -1; i < MAX_BUFFERS; i++) {
        SimObject *object = i < 0 ? pipeline : command->used[i];
        if (!object) continue;
        if (!_retains)
            [object simUse:by];
        else if (by > 0)
            [object retain];
        else
            [object release];
    }
}

- (void)simForget
{
    for (size_t i = 0; i < _count; i++) {
        [self simHold:&_commands[i] by:-1];
        [_commands[i].signposts release];
        for (int j = 0; j < MAX_BUFFERS; j++) [_commands[i].bytes[j] release];
    }
    _count = 0;
}

- (void)dealloc
{
    EXPECT(_status == MTLCommandBufferStatusNotEnqueued ||
               _status >= MTLCommandBufferStatusCompleted,
           "a command buffer was released while it ran");
    [self simForget];
    pthread_mutex_lock(&fences_mutex);
    for (SimFence *fence in _updates)
        if (fence->_updater == self) fence->_updater = nil;
    pthread_mutex_unlock(&fences_mutex);
    free(_commands);
    free(_ranges);
    [_fences release];
    [_updates release];
    [_before release];
    [_error release];
    [_queue release];
    [_handlers release];
    [super dealloc];
}

- (MTLCommandBufferStatus)status
{
    return __atomic_load_n(&_status, __ATOMIC_ACQUIRE);
}

- (NSError *)error
{
    return _error;
}

- (CFTimeInterval)GPUStartTime
{
    return _started;
}

- (CFTimeInterval)GPUEndTime
{
    return _ended;
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:(MTLDispatchType)type
{
    EXPECT(!_encoder, "a second encoder while one is open");
    EXPECT([self status] < MTLCommandBufferStatusCommitted,
           "encoding into a committed command buffer");
    SimEncoder *encoder = [[[SimEncoder alloc] init] autorelease];
    encoder->_commands = [self retain];
    encoder->_concurrent = type == MTLDispatchTypeConcurrent;
    encoder->_ordered = _count;
    _encoder = encoder;
    return encoder;
}

- (id<MTLBlitCommandEncoder>)blitCommandEncoder
{
    return [[[SimBlitEncoder alloc] init] autorelease];
}

- (void)addCompletedHandler:(void (^)(id<MTLCommandBuffer>))block
{
    EXPECT([self status] < MTLCommandBufferStatusCommitted, "addCompletedHandler: after commit");
    void *copy = (void *)Block_copy(block);
    [_handlers addObject:[NSValue valueWithPointer:copy]];
}

- (void)commit
{
    EXPECT(!_encoder, "commit with an open encoder");
    EXPECT([self status] < MTLCommandBufferStatusCommitted, "a command buffer was committed twice");
    _status = MTLCommandBufferStatusCommitted;
    if (_count) sim_count(SIM_COMMITTED, 1);
    [self simKeepRanges];
    [self simTakeFences];
    [_queue simPush:self];
}

- (void)simKeepRanges
{
    size_t most = 0;
    for (size_t i = 0; i < _count; i++) most += (size_t)_commands[i].num_ranges;
    _ranges = malloc((most + 1) * sizeof *_ranges);
    for (size_t i = 0; i < _count; i++)
        for (int j = 0; j < _commands[i].num_ranges; j++)
            _ranges[_num_ranges++] = _commands[i].ranges[j];
}

/* A fence is waited for until the last command buffer before this one that updates it has ended,
 * and with it what that waited for. */
- (void)simTakeFences
{
    pthread_mutex_lock(&fences_mutex);
    for (SimFence *fence in _fences)
        if (fence->_updater) {
            [_before addObject:fence->_updater];
            [_before unionSet:fence->_updater->_before];
        }
    for (SimFence *fence in _updates) fence->_updater = self;
    pthread_mutex_unlock(&fences_mutex);
}

- (BOOL)simMayRun
{
    for (SimCommandBuffer *other in _before)
        if ([other status] < MTLCommandBufferStatusCompleted) return NO;
    return YES;
}

/* As on Metal this covers the completion handlers; here also the queue's own reference, so that a
 * count of objects right after it is exact. */
- (void)waitUntilCompleted
{
    EXPECT([self status] >= MTLCommandBufferStatusCommitted, "waitUntilCompleted before commit");
    sim_queue_state *state = _queue->_state;
    if (pthread_equal(pthread_self(), _queue->_thread)) return; /* in a completion handler */
    pthread_mutex_lock(&state->mutex);
    while ([self status] < MTLCommandBufferStatusCompleted || state->current == self)
        pthread_cond_wait(&state->idle, &state->mutex);
    /* What comes now is behind this one, and behind all that is before it. */
    for (SimCommandBuffer *other in [_before allObjects]) {
        [state->loose removeObject:other];
        if (other != self) [other->_before removeAllObjects];
    }
    [_before removeAllObjects];
    [state->loose removeObject:self];
    pthread_mutex_unlock(&state->mutex);
}

/* What Metal says after a fault: the passes, and the signposts that this one has reached. */
- (void)simFailAt:(size_t)index code:(NSInteger)code text:(NSString *)text
{
    if (_error) return;
    NSMutableDictionary *info =
        [NSMutableDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey];
    if (_explains) {
        SimPassInfo *pass = [[[SimPassInfo alloc] init] autorelease];
        pass->_signposts = [_commands[index].signposts retain];
        [info setObject:[NSArray arrayWithObject:pass] forKey:MTLCommandBufferEncoderInfoErrorKey];
    }
    _error = [[NSError errorWithDomain:@"MTLCommandBufferErrorDomain" code:code
                              userInfo:info] retain];
}

- (void)simRunOne:(size_t)index
{
    const char *injected = getenv("SIMMETAL_FAIL");
    if (injected && (size_t)atol(injected) == index) {
        if (strstr(injected, ":timeout"))
            [self simFailAt:index
                       code:MTLCommandBufferErrorTimeout
                       text:@"Caused GPU Timeout Error (00000002)"];
        else
            [self simFailAt:index
                       code:MTLCommandBufferErrorPageFault
                       text:@"Caused GPU Address Fault Error (0000000b)"];
    }
    if (_error) return;
    sim_command *command = &_commands[index];
    if ([self simClock:command at:index]) return;
    NSString *problem = [command->pipeline->_function simRun:&command->info];
    if (problem) [self simFailAt:index code:MTLCommandBufferErrorInternal text:problem];
}

/* SIMMETAL_CLOCK's nanoseconds of a kernel's threadgroup; -1: it runs. */
static double clocked(const char *kernel)
{
    const char *text = getenv("SIMMETAL_CLOCK");
    while (text && *text) {
        size_t length = strcspn(text, ":");
        if (strncmp(kernel, text, length) == 0) return atof(text + length + 1);
        text = strchr(text, ',');
        if (text) text++;
    }
    return -1;
}

/* Whether a command takes time alone; when that is too much, this buffer ends here. */
- (BOOL)simClock:(const sim_command *)command at:(size_t)index
{
    double each = clocked([[command->pipeline->_function name] UTF8String]);
    if (each < 0) return NO;
    const uint32_t *grid = command->info.grid;
    _clocked += each * 1e-9 * grid[0] * grid[1] * grid[2];
    long long limit = sim_setting("SIMMETAL_KILL_MS", 0);
    if (limit && _clocked * 1e3 > (double)limit) {
        _queue->_state->num_killed++;
        [self simFailAt:index
                   code:MTLCommandBufferErrorInternal
                   text:@"Impacting Interactivity "
                        @"(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"];
    }
    return YES;
}

/* Dispatches that no barrier orders may run in any order: backwards shows what is missing. */
- (void)simRunAll
{
    const char *order = getenv("SIMMETAL_ORDER");
    BOOL forward = order && strcmp(order, "forward") == 0;
    for (size_t first = 0; first < _count;) {
        size_t last = first;
        while (!_commands[last].barrier_after) last++;
        for (size_t i = first; i <= last; i++) [self simRunOne:forward ? i : last - (i - first)];
        first = last + 1;
    }
}

- (void)simRun
{
    usleep((useconds_t)sim_setting("SIMMETAL_DELAY_US", 0));
    _started = now();
    sim_queue_state *state = _queue->_state;
    if (state->num_killed > 2)
        [self simFailAt:0
                   code:MTLCommandBufferErrorInternal
                   text:@"Ignored (for causing prior/excessive GPU errors) (00000004)"];
    [self simRunAll];
    _ended = now();
    if (_clocked) {
        _started = state->clock;
        _ended = state->clock += _clocked;
    }
    [self simForget];
    MTLCommandBufferStatus status =
        _error ? MTLCommandBufferStatusError : MTLCommandBufferStatusCompleted;
    __atomic_store_n(&_status, status, __ATOMIC_RELEASE);
    for (NSUInteger i = 0; i < [_handlers count]; i++) {
        void (^handler)(id<MTLCommandBuffer>) =
            (void (^)(id<MTLCommandBuffer>))[[_handlers objectAtIndex:i] pointerValue];
        handler(self);
        Block_release(handler);
    }
    [_handlers removeAllObjects];
}

@end

/* ---- the queue ---- */

/* Called with the mutex held; the last one frees. */
static void drop(sim_queue_state *state)
{
    int left = --state->references;
    pthread_mutex_unlock(&state->mutex);
    if (left) return;
    [state->waiting release];
    [state->loose release];
    pthread_mutex_destroy(&state->mutex);
    pthread_cond_destroy(&state->work);
    pthread_cond_destroy(&state->idle);
    free(state);
}

/* Apple's GPUs keep subnormal halves and take subnormal floats for zeros. Threads that this one
 * starts inherit the setting. */
static void flush_subnormal_floats(void)
{
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); /* FTZ and DAZ */
#elif defined(__aarch64__)
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control | 1u << 24)); /* FZ */
#endif
}

/* Command buffers that no fence orders may run in any order, too. */
static SimCommandBuffer *next_of(sim_queue_state *state)
{
    const char *order = getenv("SIMMETAL_ORDER");
    BOOL forward = order && strcmp(order, "forward") == 0;
    NSUInteger count = [state->waiting count];
    for (NSUInteger i = 0; i < count; i++) {
        SimCommandBuffer *commands = [state->waiting objectAtIndex:forward ? i : count - 1 - i];
        if ([commands simMayRun]) return commands;
    }
    sim_misuse("command buffers wait for each other's fences");
}

static void *run_queue(void *context)
{
    sim_queue_state *state = context;
    flush_subnormal_floats();
    [NSThread class];
    GSRegisterCurrentThread();
    pthread_mutex_lock(&state->mutex);
    for (;;) {
        while (![state->waiting count] && !state->stop)
            pthread_cond_wait(&state->work, &state->mutex);
        if (![state->waiting count]) break;
        SimCommandBuffer *commands = [next_of(state) retain];
        state->current = commands;
        [state->waiting removeObject:commands];
        pthread_mutex_unlock(&state->mutex);
        @autoreleasepool {
            [commands simRun];
            [commands release]; /* may end it, and the queue: only the state is used from here on */
        }
        pthread_mutex_lock(&state->mutex);
        state->current = nil;
        pthread_cond_broadcast(&state->idle);
    }
    drop(state);
    GSUnregisterCurrentThread();
    return NULL;
}

@implementation SimQueue

- (id)init
{
    if ((self = [super init])) {
        _state = calloc(1, sizeof *_state);
        pthread_mutex_init(&_state->mutex, NULL);
        pthread_cond_init(&_state->work, NULL);
        pthread_cond_init(&_state->idle, NULL);
        _state->waiting = [[NSMutableArray alloc] init];
        _state->loose = [[NSMutableArray alloc] init];
        _state->references = 2;
        EXPECT(pthread_create(&_thread, NULL, run_queue, _state) == 0, "no thread for a queue");
    }
    return self;
}

- (void)simPush:(SimCommandBuffer *)commands
{
    pthread_mutex_lock(&_state->mutex);
    for (SimCommandBuffer *earlier in _state->loose)
        if (![commands->_before containsObject:earlier] && sim_setting("SIMMETAL_HAZARDS", 1))
            sim_check_fences(earlier, commands);
    [_state->loose addObject:commands];
    [_state->waiting addObject:commands];
    pthread_cond_signal(&_state->work);
    pthread_mutex_unlock(&_state->mutex);
}

- (id<MTLCommandBuffer>)commandBuffer
{
    MTLCommandBufferDescriptor *usual = [[[MTLCommandBufferDescriptor alloc] init] autorelease];
    return [self commandBufferWithDescriptor:usual];
}

- (id<MTLCommandBuffer>)commandBufferWithDescriptor:(MTLCommandBufferDescriptor *)descriptor
{
    SimCommandBuffer *commands = [[[SimCommandBuffer alloc] init] autorelease];
    commands->_queue = [self retain];
    commands->_device = _device;
    commands->_retains = [descriptor retainedReferences];
    commands->_explains =
        ([descriptor errorOptions] & MTLCommandBufferErrorOptionEncoderExecutionStatus) != 0;
    return commands;
}

- (void)addResidencySet:(id<MTLResidencySet>)residencySet
{
    EXPECT(residencySet, "addResidencySet: nil");
}

- (void)removeResidencySet:(id<MTLResidencySet>)residencySet
{
    EXPECT(residencySet, "removeResidencySet: nil");
}

- (void)dealloc
{
    pthread_mutex_lock(&_state->mutex);
    _state->stop = YES;
    pthread_cond_signal(&_state->work);
    pthread_mutex_unlock(&_state->mutex);
    if (pthread_equal(pthread_self(), _thread))
        pthread_detach(_thread);
    else
        pthread_join(_thread, NULL);
    pthread_mutex_lock(&_state->mutex);
    drop(_state);
    [super dealloc];
}

@end
