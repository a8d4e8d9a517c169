/* device.m: the simulated GPU: what it says of itself, and the libraries and pipelines it makes. */
#import "sim.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static NSString *const LIBRARY_ERROR = @"MTLLibraryErrorDomain";

/* ---- libraries and functions ---- */

/* Function constants are variables of the loaded file, which every device of a process shares: one
 * dispatch at a time. */
static pthread_mutex_t constants_mutex = PTHREAD_MUTEX_INITIALIZER;

@implementation SimLibrary

- (NSArray *)functionNames
{
    NSMutableArray *names = [NSMutableArray array];
    for (int i = 0; i < msl_library_count(_library); i++)
        [names addObject:[NSString stringWithUTF8String:msl_library_name(_library, i)]];
    return names;
}

/* A value for a constant that the library declares must have its size; others are ignored. */
- (void)simCheck:(NSDictionary *)values
{
    for (int i = 0; i < msl_library_nconstants(_library); i++) {
        int declared[2];
        const char *name = msl_library_constant(_library, i, declared);
        NSData *value = [values objectForKey:[NSNumber numberWithInt:declared[0]]];
        EXPECT(!value || [value length] == (NSUInteger)declared[1],
               "function constant %s: a value of the wrong size", name);
    }
}

- (id<MTLFunction>)newFunctionWithName:(NSString *)name
                        constantValues:(MTLFunctionConstantValues *)constantValues
                                 error:(NSError **)error
{
    int index = msl_library_find(_library, [name UTF8String]);
    if (index < 0) {
        NSString *text =
            [NSString stringWithFormat:@"Function %@ was not found in the library", name];
        if (error) *error = sim_error(LIBRARY_ERROR, 5, text);
        return nil;
    }
    [self simCheck:[constantValues simValues]];
    SimFunction *function = [[SimFunction alloc] init];
    function->_device = _device;
    function->_library = [self retain];
    function->_index = index;
    function->_constants = [[constantValues simValues] copy];
    return function;
}

@end

@implementation SimFunction

- (NSString *)name
{
    return [NSString stringWithUTF8String:msl_library_name(_library->_library, _index)];
}

- (NSString *)simKey
{
    NSMutableString *key = [NSMutableString stringWithString:[self name]];
    NSArray *indices = [[_constants allKeys] sortedArrayUsingSelector:@selector(compare:)];
    for (NSUInteger i = 0; i < [indices count]; i++) {
        id index = [indices objectAtIndex:i];
        [key appendFormat:@" %@=%@", index, [_constants objectForKey:index]];
    }
    return key;
}

- (NSString *)simRun:(const msl_dispatch_info *)info
{
    char text[600] = "";
    msl_library *library = _library->_library;
    pthread_mutex_lock(&constants_mutex);
    msl_library_clear_constants(library);
    NSEnumerator *indices = [_constants keyEnumerator];
    for (NSNumber *index = [indices nextObject]; index; index = [indices nextObject]) {
        NSData *value = [_constants objectForKey:index];
        msl_library_set_constant(library, [index intValue], NULL, [value bytes], [value length]);
    }
    int failed = msl_dispatch(library, _index, info, text, sizeof text);
    pthread_mutex_unlock(&constants_mutex);
    return failed ? [NSString stringWithUTF8String:text] : nil;
}

- (void)dealloc
{
    [_library release];
    [_constants release];
    [super dealloc];
}

@end

/* ---- pipelines and their archive: a file with a line for each pipeline ---- */

static NSString *const ARCHIVE_HEAD = @"simulated binary archive";

@implementation SimPipeline

- (NSUInteger)maxTotalThreadsPerThreadgroup
{
    int own = msl_kernel_max_threads(_function->_library->_library, _function->_index);
    long long most = sim_setting("SIMMETAL_MAX_THREADS", own);
    return (NSUInteger)(most < own ? most : own);
}

- (NSUInteger)threadExecutionWidth
{
    return 32;
}

- (void)dealloc
{
    [_function release];
    [super dealloc];
}

@end

@implementation SimArchive

- (id)init
{
    if ((self = [super init])) _keys = [[NSMutableSet alloc] init];
    return self;
}

- (BOOL)addComputePipelineFunctionsWithDescriptor:(MTLComputePipelineDescriptor *)descriptor
                                            error:(NSError **)error
{
    (void)error;
    [_keys addObject:[(SimFunction *)[descriptor computeFunction] simKey]];
    return YES;
}

- (BOOL)serializeToURL:(NSURL *)url error:(NSError **)error
{
    sim_count(SIM_SAVED, 1);
    NSString *keys = [[_keys allObjects] componentsJoinedByString:@"\n"];
    NSString *text = [NSString stringWithFormat:@"%@\n%@\n", ARCHIVE_HEAD, keys];
    if ([text writeToFile:[url path] atomically:NO encoding:NSUTF8StringEncoding error:NULL])
        return YES;
    if (error) *error = sim_error(@"MTLBinaryArchiveDomain", 1, @"the archive cannot be written");
    return NO;
}

- (BOOL)simRead:(NSString *)path
{
    NSString *text = [NSString stringWithContentsOfFile:path
                                               encoding:NSUTF8StringEncoding
                                                  error:NULL];
    if (![text hasPrefix:ARCHIVE_HEAD]) return NO;
    [_keys addObjectsFromArray:[text componentsSeparatedByString:@"\n"]];
    return YES;
}

- (void)dealloc
{
    [_keys release];
    [super dealloc];
}

@end

/* ---- the device ---- */

@implementation SimDevice

- (NSString *)name
{
    const char *name = getenv("SIMMETAL_NAME");
    return name ? [NSString stringWithUTF8String:name] : @"Simulated Apple GPU";
}

/* Only whether there is one is asked. */
- (MTLArchitecture *)architecture
{
    return sim_setting("SIMMETAL_NO_ARCHITECTURE", 0) ? nil : (MTLArchitecture *)[self name];
}

- (BOOL)hasUnifiedMemory
{
    return YES;
}

- (uint64_t)recommendedMaxWorkingSetSize
{
    return (uint64_t)sim_setting("SIMMETAL_WORKING_SET", 8ll << 30);
}

- (NSUInteger)maxBufferLength
{
    return (NSUInteger)sim_setting("SIMMETAL_MAX_BUFFER", 4ll << 30);
}

- (NSUInteger)currentAllocatedSize
{
    return (NSUInteger)sim_live_bytes();
}

- (BOOL)supportsFamily:(MTLGPUFamily)family
{
    NSInteger newest = 1000 + (NSInteger)sim_setting("SIMMETAL_FAMILY", 9);
    return (NSInteger)family <= newest || family == MTLGPUFamilyMetal3;
}

- (BOOL)respondsToSelector:(SEL)selector
{
    if (sel_isEqual(selector, @selector(newResidencySetWithDescriptor:error:)) &&
        sim_setting("SIMMETAL_OLD_OS", 0))
        return NO;
    return [super respondsToSelector:selector];
}

- (id<MTLCommandQueue>)newCommandQueue
{
    SimQueue *queue = [[SimQueue alloc] init];
    queue->_device = self;
    return queue;
}

- (id<MTLFence>)newFence
{
    SimFence *fence = [[SimFence alloc] init];
    fence->_device = self;
    return fence;
}

- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options
{
    return sim_create_buffer(self, length, options);
}

- (id<MTLBuffer>)newBufferWithBytesNoCopy:(void *)pointer
                                   length:(NSUInteger)length
                                  options:(MTLResourceOptions)options
                              deallocator:(void (^)(void *pointer, NSUInteger length))deallocator
{
    return sim_wrap_buffer(self, pointer, length, options, deallocator);
}

- (id<MTLLibrary>)simOpen:(NSString *)path error:(NSError **)error
{
    char text[1000];
    msl_library *opened = msl_library_open([path UTF8String], text, sizeof text);
    if (!opened) {
        if (error) *error = sim_error(LIBRARY_ERROR, 1, [NSString stringWithUTF8String:text]);
        return nil;
    }
    SimLibrary *library = [[SimLibrary alloc] init];
    library->_library = opened;
    library->_device = self;
    return library;
}

- (id<MTLLibrary>)newLibraryWithURL:(NSURL *)url error:(NSError **)error
{
    return [self simOpen:[url path] error:error];
}

- (id<MTLLibrary>)newLibraryWithSource:(NSString *)source
                               options:(MTLCompileOptions *)options
                                 error:(NSError **)error
{
    const char *compiler = getenv("SIMMETAL_COMPILER");
    EXPECT(compiler, "newLibraryWithSource: SIMMETAL_COMPILER is not set");
    EXPECT(![options fastMathEnabled], "the simulation has no fast math");
    char folder[] = "/tmp/simmetal.XXXXXX";
    EXPECT(mkdtemp(folder), "no temporary folder");
    NSString *place = [NSString stringWithUTF8String:folder];
    NSString *input = [place stringByAppendingPathComponent:@"program_source.metal"];
    NSString *output = [place stringByAppendingPathComponent:@"library.so"];
    [source writeToFile:input atomically:NO encoding:NSUTF8StringEncoding error:NULL];
    NSString *log = [place stringByAppendingPathComponent:@"log"];
    NSString *command =
        [NSString stringWithFormat:@"%s %@ %@ >%@ 2>&1", compiler, input, output, log];
    id<MTLLibrary> library = nil;
    if (system([command UTF8String]) == 0)
        library = [self simOpen:output error:error];
    else if (error)
        *error = sim_error(LIBRARY_ERROR, 3,
                           [NSString stringWithContentsOfFile:log
                                                     encoding:NSUTF8StringEncoding
                                                        error:NULL]);
    sim_count(SIM_COMPILED, 1);
    [[NSFileManager defaultManager] removeItemAtPath:place error:NULL];
    return library;
}

- (id<MTLComputePipelineState>)
    newComputePipelineStateWithDescriptor:(MTLComputePipelineDescriptor *)descriptor
                                  options:(MTLPipelineOption)options
                               reflection:(MTLAutoreleasedComputePipelineReflection *)reflection
                                    error:(NSError **)error
{
    (void)reflection;
    SimFunction *function = (SimFunction *)[descriptor computeFunction];
    EXPECT(function, "a pipeline without a function");
    const char *broken = getenv("SIMMETAL_NIL_PIPELINE");
    if (broken && [[function name] isEqual:[NSString stringWithUTF8String:broken]]) {
        if (error) *error = sim_error(@"AGXMetal", 3, @"Compiler encountered an internal error");
        return nil;
    }
    BOOL archived = NO;
    for (NSUInteger i = 0; i < [[descriptor binaryArchives] count]; i++) {
        SimArchive *archive = [[descriptor binaryArchives] objectAtIndex:i];
        archived |= [archive->_keys containsObject:[function simKey]];
    }
    if (!archived && (options & MTLPipelineOptionFailOnBinaryArchiveMiss)) return nil;
    if (archived) sim_count(SIM_FROM_ARCHIVE, 1);
    SimPipeline *pipeline = [[SimPipeline alloc] init];
    pipeline->_device = self;
    pipeline->_function = [function retain];
    return pipeline;
}

- (id<MTLBinaryArchive>)newBinaryArchiveWithDescriptor:(MTLBinaryArchiveDescriptor *)descriptor
                                                 error:(NSError **)error
{
    SimArchive *archive = [[SimArchive alloc] init];
    archive->_device = self;
    if (![descriptor url] || [archive simRead:[[descriptor url] path]]) return archive;
    [archive release];
    if (error) *error = sim_error(@"MTLBinaryArchiveDomain", 1, @"Invalid binary archive");
    return nil;
}

- (id<MTLResidencySet>)newResidencySetWithDescriptor:(MTLResidencySetDescriptor *)descriptor
                                               error:(NSError **)error
{
    (void)descriptor, (void)error;
    SimResidencySet *set = [[SimResidencySet alloc] init];
    set->_device = self;
    return set;
}

@end

id<MTLDevice> MTLCreateSystemDefaultDevice(void)
{
    return sim_setting("SIMMETAL_NO_DEVICE", 0) ? nil : [[SimDevice alloc] init];
}

NSArray *MTLCopyAllDevices(void)
{
    if (sim_setting("SIMMETAL_NO_DEVICE", 0) == 1) return [[NSArray alloc] init];
    SimDevice *device = [[[SimDevice alloc] init] autorelease];
    return [[NSArray alloc] initWithObjects:device, nil];
}
