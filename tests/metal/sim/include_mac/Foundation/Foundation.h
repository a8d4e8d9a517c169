/* Foundation.h: just enough of Apple's Foundation to compile metal.m for a Mac without an SDK
 * (test_metal_surface.py). Never linked, never shipped. */
#ifndef STUB_FOUNDATION_H
#define STUB_FOUNDATION_H

#include <stddef.h>
#include <stdint.h>

typedef unsigned long NSUInteger;
typedef long NSInteger;
typedef double CFTimeInterval;
typedef struct {
    NSUInteger location, length;
} NSRange;
static inline NSRange NSMakeRange(NSUInteger location, NSUInteger length)
{
    return (NSRange){location, length};
}
typedef _Bool BOOL;
#define YES ((BOOL)1)
#define NO ((BOOL)0)
#define nil ((id)0)
#define NS_ENUM(type, name)                                                                        \
    enum name : type name;                                                                         \
    enum name : type
#define NS_OPTIONS(type, name) NS_ENUM(type, name)

typedef struct _NSZone NSZone;

@protocol NSObject
- (id)retain;
- (oneway void)release;
- (id)autorelease;
- (BOOL)respondsToSelector:(SEL)selector;
@end

@protocol NSCopying
- (id)copyWithZone:(NSZone *)zone;
@end

__attribute__((objc_root_class))
@interface NSObject<NSObject>
+ (id)alloc;
- (id)init;
- (void)dealloc;
@end

@interface NSString : NSObject <NSCopying>
+ (instancetype)stringWithUTF8String:(const char *)text;
- (instancetype)initWithFormat:(NSString *)format, ...;
- (const char *)UTF8String;
@end

@interface NSConstantString : NSString
@end

@interface NSURL : NSObject <NSCopying>
+ (instancetype)fileURLWithPath:(NSString *)path;
@end

@interface NSDictionary : NSObject <NSCopying>
- (id)objectForKey:(id)key;
@end

@interface NSMutableDictionary : NSDictionary
@end

@interface NSArray : NSObject <NSCopying>
+ (instancetype)arrayWithObject:(id)object;
- (id)firstObject;
- (id)lastObject;
@end

@interface NSError : NSObject
- (NSString *)localizedDescription;
- (NSDictionary *)userInfo;
@end

typedef NS_OPTIONS(uint64_t, NSActivityOptions) {
    NSActivityUserInitiated = 0x00ffffffull | 1ull << 20,
    NSActivityLatencyCritical = 0xff00000000ull,
};

@interface NSProcessInfo : NSObject
+ (NSProcessInfo *)processInfo;
- (NSString *)operatingSystemVersionString;
- (id<NSObject>)beginActivityWithOptions:(NSActivityOptions)options reason:(NSString *)reason;
- (void)endActivity:(id<NSObject>)activity;
@end

#endif
