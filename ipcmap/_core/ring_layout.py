"""Where the shared bytes of a ring lie. Nothing else computes an offset in one.

A ring at offset 0 of its block; one line is 64 bytes, two processors' caches apart::

      0  producers' section   a robust mutex (reference_sections)
     64  producers' words     write_pos  puts  next_write_pos  next_puts  seen_read_pos  closed
    128  consumers' parking   where consumers wait for records; sleepers in the producers' section
    192  consumers' section
    256  consumers' words     read_pos  gets  next_read_pos  next_gets  seen_write_pos  ended
    320  producers' parking   where producers wait for room; sleepers in the consumers' section
    384  capacity             u64, a power of two; never changes
    448  records              capacity bytes

A record is 8-byte aligned, and contiguous::

    u64 header   length (32 bits) | kind (2 bits) | number (30 bits)
    length bytes, and up to seven unused ones

``number`` counts records from 0, cut to its bits; a padding record has the number of
the record that follows it. Words are u64 in the machine's byte order.
"""

from __future__ import annotations

__all__: list[str] = []

PRODUCERS_SECTION = 0
CONSUMERS_PARKING = 128
CONSUMERS_SECTION = 192
PRODUCERS_PARKING = 320
RECORDS = 448

# Indices of u64 words.
WRITE_POS, PUTS, NEXT_WRITE_POS, NEXT_PUTS, SEEN_READ_POS, CLOSED = range(8, 14)
CONSUMERS_SLEEPING = (CONSUMERS_PARKING + 32) // 8
READ_POS, GETS, NEXT_READ_POS, NEXT_GETS, SEEN_WRITE_POS, ENDED = range(32, 38)
PRODUCERS_SLEEPING = (PRODUCERS_PARKING + 32) // 8
CAPACITY = 384 // 8
FIRST_RECORD = RECORDS // 8

HEADER = 8  # bytes
LENGTH_MASK = 2**32 - 1
KIND_SHIFT, NUMBER_SHIFT = 32, 34
KIND_MASK, NUMBER_MASK = 3, 2**30 - 1
RECORD, PADDING = 0, 1
