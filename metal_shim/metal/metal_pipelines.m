/* metal_pipelines.m: the Metal device's pipelines: one for each variant of a kernel that a program
 * asks for, and the archive in which they are kept from one process to the next. They are the
 * device's until it closes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "metal/metal_objects.h"

/* ---- the archive ---- */

void marlin_open_archive(marlin_device *device, const char *source)
{
    /* Metal has ended processes that opened one on a virtual machine's GPU. */
    if (strstr([[device->gpu name] UTF8String], "aravirtual") || ![device->gpu architecture])
        return;
    NSString *system = [[NSProcessInfo processInfo] operatingSystemVersionString];
    if (!marlin_archive_path(source, [system UTF8String], [[device->gpu name] UTF8String],
                             device->archive_path, PATH_BYTES))
        return;
    MTLBinaryArchiveDescriptor *descriptor = MAKE(MTLBinaryArchiveDescriptor);
    if (access(device->archive_path, R_OK) == 0) [descriptor setUrl:url_of(device->archive_path)];
    device->archive = [device->gpu newBinaryArchiveWithDescriptor:descriptor error:NULL];
    if (device->archive) return;
    [descriptor setUrl:nil];
    device->archive = [device->gpu newBinaryArchiveWithDescriptor:descriptor error:NULL];
}

void marlin_save_archive(marlin_device *device)
{
    if (!device->archive_grew) return;
    char partial[PATH_BYTES + 48];
    marlin_begin_archive(device->archive_path, device, partial, sizeof partial);
    BOOL written = [device->archive serializeToURL:url_of(partial) error:NULL];
    marlin_end_archive(device->archive_path, partial, written);
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
        /* Compiled into it, and then taken out of it: the other way round is compiled twice. */
        device->archive_grew |=
            [device->archive addComputePipelineFunctionsWithDescriptor:descriptor error:NULL];
    }
    return [device->gpu newComputePipelineStateWithDescriptor:descriptor
                                                      options:MTLPipelineOptionNone
                                                   reflection:NULL
                                                        error:error];
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

int marlin_find_pipeline(marlin_device *device, const marlin_record *record, int variant,
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
