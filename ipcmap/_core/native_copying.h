/* native_copying.h -- how a producer writes the bytes of a record.
 *
 * A line that its reader has had lies in two caches, and who writes it again must first
 * have it back, line by line. A record of many lines is written past the caches instead:
 * whole lines go to memory, and nobody is asked for what stood there. Note 0016 says what
 * that is worth, and from which length on.
 *
 * Such stores are in no order with others. So `fill` ends with a fence: whoever sees the
 * position that is stored afterwards (R1) sees the bytes. Before the fence nothing of the
 * record is published, so a death there leaves what a half-done memcpy would. */
#ifndef IPCMAP_NATIVE_COPYING_H
#define IPCMAP_NATIVE_COPYING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>

enum { LINE = 64 };
static const size_t STREAM_FROM = 2048; /* bytes */

/* Write from the first whole line to the last; the rest as usual. */
static inline void fill(void *target, const void *source, size_t nbytes)
{
    if (nbytes < STREAM_FROM) {
        memcpy(target, source, nbytes);
        return;
    }
    unsigned char *to = target;
    const unsigned char *from = source, *end = from + nbytes;
    size_t head = -(uintptr_t)to & (LINE - 1);
    memcpy(to, from, head);
    to += head;
    from += head;
    for (; end - from >= LINE; to += LINE, from += LINE) {
        __m128i *line = (__m128i *)to;
        const __m128i *part = (const __m128i *)from;
        __m128i first = _mm_loadu_si128(part), second = _mm_loadu_si128(part + 1);
        __m128i third = _mm_loadu_si128(part + 2), fourth = _mm_loadu_si128(part + 3);
        _mm_stream_si128(line, first);
        _mm_stream_si128(line + 1, second);
        _mm_stream_si128(line + 2, third);
        _mm_stream_si128(line + 3, fourth);
    }
    memcpy(to, from, (size_t)(end - from));
    _mm_sfence();
}
#else
static inline void fill(void *target, const void *source, size_t nbytes)
{
    memcpy(target, source, nbytes);
}
#endif

#endif
