/* resources.m: what everything here shares (misuse, counts, settings), and the objects that hold
 * memory: buffers and residency sets. */
#import "sim.h"
#include <Block.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long live_objects, live_bytes, counts[NUM_SIM_COUNTS];

void sim_misuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("simulated Metal: misuse: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

long long sim_setting(const char *name, long long otherwise)
{
    const char *text = getenv(name);
    return text && *text ? atoll(text) : otherwise;
}

NSError *sim_error(NSString *domain, NSInteger code, NSString *text)
{
    NSDictionary *info = [NSDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey];
    return [NSError errorWithDomain:domain code:code userInfo:info];
}

static void add(long *counter, long by) { __atomic_fetch_add(counter, by, __ATOMIC_SEQ_CST); }

long sim_live_objects(void) { return __atomic_load_n(&live_objects, __ATOMIC_SEQ_CST); }

long sim_live_bytes(void) { return __atomic_load_n(&live_bytes, __ATOMIC_SEQ_CST); }

long sim_counted(int event) { return __atomic_load_n(&counts[event], __ATOMIC_SEQ_CST); }

void sim_count(int event, long by) { add(&counts[event], by); }

@implementation SimObject

- (id)init
{
    if ((self = [super init])) add(&live_objects, 1);
    return self;
}

- (void)dealloc
{
    EXPECT(_uses == 0, "%s was freed while a command buffer without references uses it",
           [NSStringFromClass([self class]) UTF8String]);
    add(&live_objects, -1);
    [_label release];
    [super dealloc];
}

- (NSString *)label
{
    return _label;
}

- (void)setLabel:(NSString *)label
{
    [label retain];
    [_label release];
    _label = label;
}

- (id<MTLDevice>)device
{
    return _device;
}

- (void)simUse:(long)by
{
    add(&_uses, by);
}

@end

/* ---- buffers ---- */

@implementation SimBuffer

- (void *)contents
{
    return (_options >> 4 & 15) == MTLStorageModePrivate ? NULL : _memory;
}

- (NSUInteger)length
{
    return _length;
}

- (NSUInteger)allocatedSize
{
    return _length;
}

- (MTLStorageMode)storageMode
{
    return (MTLStorageMode)(_options >> 4 & 15);
}

- (void)dealloc
{
    add(&live_bytes, -(long)_length);
    if (_owned) {
        memset(_memory, 0xdd, _length); /* whoever still reads it reads nonsense */
        free(_memory);
    }
    if (_deallocator) {
        _deallocator(_memory, _length);
        Block_release(_deallocator);
    }
    [super dealloc];
}

@end

static BOOL has_room(SimDevice *device, NSUInteger length)
{
    return length > 0 && length <= [device maxBufferLength] &&
           (uint64_t)sim_live_bytes() + length <= [device recommendedMaxWorkingSetSize];
}

static SimBuffer *new_buffer(SimDevice *device, NSUInteger length, MTLResourceOptions options)
{
    SimBuffer *buffer = [[SimBuffer alloc] init];
    buffer->_device = device;
    buffer->_length = length;
    buffer->_options = options;
    add(&live_bytes, (long)length);
    return buffer;
}

SimBuffer *sim_create_buffer(SimDevice *device, NSUInteger length, MTLResourceOptions options)
{
    if (!has_room(device, length)) return nil;
    SimBuffer *buffer = new_buffer(device, length, options);
    void *memory = NULL;
    EXPECT(posix_memalign(&memory, 64, length) == 0, "no memory");
    memset(memory, 0, length);
    buffer->_memory = memory;
    buffer->_owned = YES;
    return buffer;
}

SimBuffer *sim_wrap_buffer(SimDevice *device, void *pointer, NSUInteger length,
                           MTLResourceOptions options, void (^deallocator)(void *, NSUInteger))
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    EXPECT((uintptr_t)pointer % page == 0,
           "newBufferWithBytesNoCopy: pointer %p is not aligned to pages of %lu bytes", pointer,
           (unsigned long)page);
    EXPECT(length % page == 0,
           "newBufferWithBytesNoCopy: length %lu is no multiple of a page of %lu bytes",
           (unsigned long)length, (unsigned long)page);
    if (!has_room(device, length)) return nil;
    SimBuffer *buffer = new_buffer(device, length, options);
    buffer->_memory = pointer;
    buffer->_deallocator = deallocator ? Block_copy(deallocator) : NULL;
    return buffer;
}

/* ---- residency sets ---- */

@implementation SimResidencySet

- (id)init
{
    if ((self = [super init])) {
        _members = [[NSMutableSet alloc] init];
        _pending = [[NSMutableSet alloc] init];
    }
    return self;
}

- (void)addAllocation:(id<MTLAllocation>)allocation
{
    EXPECT(allocation, "addAllocation: nil");
    [_pending addObject:allocation];
}

- (void)removeAllocation:(id<MTLAllocation>)allocation
{
    [_pending removeObject:allocation];
}

- (void)commit
{
    sim_count(SIM_RESIDENT, (long)[_pending count] - (long)[_members count]);
    [_members setSet:_pending];
}

- (void)requestResidency
{
    EXPECT([_members isEqual:_pending], "requestResidency before commit");
    sim_count(SIM_REQUESTED, 1);
}

- (void)endResidency
{
}

- (void)dealloc
{
    sim_count(SIM_RESIDENT, -(long)[_members count]);
    [_members release];
    [_pending release];
    [super dealloc];
}

@end

/* ---- descriptors ---- */

@implementation MTLCompileOptions

@synthesize languageVersion = _languageVersion, fastMathEnabled = _fastMathEnabled;

- (id)init
{
    if ((self = [super init])) _fastMathEnabled = YES; /* as Metal's */
    return self;
}

- (MTLMathMode)mathMode
{
    return _fastMathEnabled ? MTLMathModeFast : MTLMathModeSafe;
}

- (void)setMathMode:(MTLMathMode)mode
{
    _fastMathEnabled = mode == MTLMathModeFast;
}

- (id)copyWithZone:(NSZone *)zone
{
    MTLCompileOptions *copy = [[MTLCompileOptions allocWithZone:zone] init];
    [copy setLanguageVersion:_languageVersion];
    [copy setFastMathEnabled:_fastMathEnabled];
    return copy;
}

@end

@implementation MTLFunctionConstantValues

- (id)init
{
    if ((self = [super init])) _values = [[NSMutableDictionary alloc] init];
    return self;
}

- (void)setConstantValue:(const void *)value type:(MTLDataType)type atIndex:(NSUInteger)index
{
    EXPECT(type == MTLDataTypeUInt || type == MTLDataTypeInt || type == MTLDataTypeFloat ||
               type == MTLDataTypeBool,
           "a function constant of type %lu is not simulated", (unsigned long)type);
    NSData *data = [NSData dataWithBytes:value length:type == MTLDataTypeBool ? 1 : 4];
    [_values setObject:data forKey:[NSNumber numberWithUnsignedLong:index]];
}

- (NSDictionary *)simValues
{
    return _values;
}

- (id)copyWithZone:(NSZone *)zone
{
    MTLFunctionConstantValues *copy = [[MTLFunctionConstantValues allocWithZone:zone] init];
    [copy->_values setDictionary:_values];
    return copy;
}

- (void)dealloc
{
    [_values release];
    [super dealloc];
}

@end

@implementation MTLComputePipelineDescriptor

@synthesize computeFunction = _computeFunction, binaryArchives = _binaryArchives;

- (id)copyWithZone:(NSZone *)zone
{
    MTLComputePipelineDescriptor *copy = [[MTLComputePipelineDescriptor allocWithZone:zone] init];
    [copy setComputeFunction:_computeFunction];
    [copy setBinaryArchives:_binaryArchives];
    return copy;
}

- (void)dealloc
{
    [_computeFunction release];
    [_binaryArchives release];
    [super dealloc];
}

@end

@implementation MTLBinaryArchiveDescriptor

@synthesize url = _url;

- (id)copyWithZone:(NSZone *)zone
{
    MTLBinaryArchiveDescriptor *copy = [[MTLBinaryArchiveDescriptor allocWithZone:zone] init];
    [copy setUrl:_url];
    return copy;
}

- (void)dealloc
{
    [_url release];
    [super dealloc];
}

@end

@implementation MTLCommandBufferDescriptor

@synthesize retainedReferences = _retainedReferences, errorOptions = _errorOptions;

- (id)init
{
    if ((self = [super init])) _retainedReferences = YES; /* as Metal's */
    return self;
}

- (id)copyWithZone:(NSZone *)zone
{
    MTLCommandBufferDescriptor *copy = [[MTLCommandBufferDescriptor allocWithZone:zone] init];
    [copy setRetainedReferences:_retainedReferences];
    [copy setErrorOptions:_errorOptions];
    return copy;
}

@end

@implementation MTLResidencySetDescriptor

@synthesize initialCapacity = _initialCapacity;

- (id)copyWithZone:(NSZone *)zone
{
    MTLResidencySetDescriptor *copy = [[MTLResidencySetDescriptor allocWithZone:zone] init];
    [copy setInitialCapacity:_initialCapacity];
    return copy;
}

@end
