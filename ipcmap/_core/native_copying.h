/* native_copying.h -- how a producer writes the bytes of a record.
 *
 * A line that its reader has had lies in two caches, and who writes it again must first
 * have it back, line by line. A record of many lines is written past the caches instead:
 * whole lines go to memory, and nobody is asked for what stood there. Note 0016 says what
 * that is worth, and from which length on.
 *
 * Such stores are in no order with others. So `fill` ends with a fence: whoever sees the
 * position that is stored afterwards (R1) sees the bytes.
 *
 * The bytes go to where no record is yet: the producers', whose section the caller holds.
 *
 * Sync points
 *   R0 fill    the bytes of a short record, by memcpy
 *   R0 stream  the whole lines of a long one, past the caches; amid = between two of them
 *   R0 fence   all of its bytes are written; after it, whoever sees R1 sees them
 *
 * If a process dies amid R0 fill or R0 stream, some bytes are there and others not, in
 * any order. Before R0 fence all of them are written, and after it all of them are there.
 * It is the same to all others: before R1 there is no record, and the next producer writes
 * its own over the bytes. Nothing of the dead comes after that. What waits to go past a
 * CPU's caches goes with its next locked instruction: at the latest with the one by which
 * the kernel, there, lets go of the dead's section, or moves a thread to another CPU. Its
 * heir enters only then. Who is stopped keeps the section, and ends the copy when it goes on. */
#ifndef IPCMAP_NATIVE_COPYING_H
#define IPCMAP_NATIVE_COPYING_H

#include "native_sync_points.h"

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
        COPY("R0 fill", target, source, nbytes);
        return;
    }
    unsigned char *to = target;
    const unsigned char *from = source, *end = from + nbytes;
    size_t head = -(uintptr_t)to & (LINE - 1);
    memcpy(to, from, head);
    to += head;
    from += head;
    SYNC_POINT("R0 stream", "before");
    for (; end - from >= LINE; to += LINE, from += LINE) {
        if ((size_t)(end - from) / LINE == nbytes / LINE / 2)
            SYNC_POINT("R0 stream", "amid");
        __m128i *line = (__m128i *)to;
        const __m128i *part = (const __m128i *)from;
        __m128i first = _mm_loadu_si128(part), second = _mm_loadu_si128(part + 1);
        __m128i third = _mm_loadu_si128(part + 2), fourth = _mm_loadu_si128(part + 3);
        _mm_stream_si128(line, first);
        _mm_stream_si128(line + 1, second);
        _mm_stream_si128(line + 2, third);
        _mm_stream_si128(line + 3, fourth);
    }
    SYNC_POINT("R0 stream", "after");
    memcpy(to, from, (size_t)(end - from));
    STEP("R0 fence", _mm_sfence());
}
#else
static inline void fill(void *target, const void *source, size_t nbytes)
{
    COPY("R0 fill", target, source, nbytes);
}
#endif

#endif
