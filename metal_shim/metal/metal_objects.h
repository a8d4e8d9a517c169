/* metal_objects.h: what the Objective-C files of the Metal device share: the device itself, and
 * what each asks of the others. */
#ifndef MARLIN_METAL_OBJECTS_H
#define MARLIN_METAL_OBJECTS_H

#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include "metal/metal.h"

/* An object of a class that is made with init alone, not owned. */
#define MAKE(class) ([[[class alloc] init] autorelease])
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
    id<MTLFence> fence; /* between the command buffers of a replay */
    id<MTLLibrary> library;
    id<MTLBinaryArchive> archive; /* nil: pipelines are not kept */
    char archive_path[PATH_BYTES];
    BOOL archive_grew;
    id residency; /* id<MTLResidencySet>, nil: the OS has none */
    BOOL residency_grew;
    BOOL has_run;          /* any command */
    BOOL explains;         /* a replay has failed: from now on Metal notes how far each gets */
    id activity;           /* what keeps the system from slowing us down, nil: nothing does */
    id<MTLBuffer> status;  /* one uint32 */
    id<MTLBuffer> nothing; /* bound where a record binds nothing */
    pipeline *pipelines;
    int32_t num_pipelines;
    int64_t used_bytes; /* of every buffer, whole pages */
    char family[16];
    char note[256]; /* marlin_device_info's */
    double pace;    /* seconds that this GPU takes for one of metal_cost.c */
    marlin_program *running;
    marlin_program *ahead; /* whose next replay is encoded; NULL: no program's */
};

static inline const char *text_of(NSError *error)
{
    NSString *text = [error localizedDescription];
    return text ? [text UTF8String] : "Metal gives no reason";
}

static inline NSURL *url_of(const char *path)
{
    return [NSURL fileURLWithPath:[NSString stringWithUTF8String:path]];
}

/* metal_pipelines.m */
/* The archive of earlier runs, or an empty one where there is none or it cannot be read; its path
 * is the device's archive_path. */
void marlin_open_archive(marlin_device *device, const char *source);
/* Keep what this process has compiled for the next one. A cache: failing is no error. */
void marlin_save_archive(marlin_device *device);
/* The device's pipeline of a record's variant, made when it is first asked for. */
int marlin_find_pipeline(marlin_device *device, const marlin_record *record, int variant,
                         id<MTLComputePipelineState> *out);

/* metal_replay.m */
/* Give up the replay that is encoded and not asked for. */
void marlin_drop_ahead(marlin_device *device);

/* metal.m */
/* Ask for all buffers that are in the residency set. */
void marlin_request_residency(marlin_device *device);
/* Tell the system that somebody waits for this process, until the device is told to keep resident,
 * which is when nothing is left to do, or closes. */
void marlin_begin_activity(marlin_device *device);

#endif
