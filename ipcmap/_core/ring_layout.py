"""Where the shared bytes of a ring lie. Nothing else computes an offset in one.

A ring at offset 0 of its block; one line is 64 bytes, two processors' caches apart::

      0  producers' section   a robust mutex (reference_sections)
     64  producers' words     write_pos  room_end  seen_read_pos  closed  puts  takeovers
                             listeners  calls
    128  consumers' parking   where consumers wait for records; sleepers in the producers' section
    192  consumers' section
    256  consumers' words     read_pos  seen_write_pos  ended  returned
                             lease_offset  lease_generation  takeovers  joiners
    320  producers' parking   where producers wait for room; sleepers in the consumers' section,
                             and so are room_listeners  room_calls
    384  capacity             u64, a power of two; never changes
    448  records              capacity bytes

A record is 8-byte aligned, and contiguous::

    u64 header   length (32 bits) | kind (2 bits) | number (30 bits)
    length bytes, and up to seven unused ones

``number`` counts records from 0, cut to its bits; a padding record has the number of
the record that follows it. At write_pos stands a stub: a header of which the number
counts alone, so that both positions always show how many records came before.

    kind   RECORD    the bytes themselves
           PADDING   nothing: the next record is at index 0
           BLOCK     two words: offset and generation of the block that has the bytes
           TAKEN     the bytes, which a lease has taken already

A block that has to do with a ring begins with a line of words: offset and generation of
the ring, of a record its position and its length in bytes, the call that has it in hand,
and whether it came back from a dead holder; its bytes follow. A listener's block has no
bytes, and behind the ring (or what else it listens to) the call for which it is armed,
process, number, device and inode of its descriptor, and the word that is its mark.

A word of sleepers counts them in its lower half. Above that stands LISTENING, where a
listener may be armed. Words are u64 in the machine's byte order.
"""

from __future__ import annotations

import sys

__all__: list[str] = []

PRODUCERS_SECTION = 0
CONSUMERS_PARKING = 128
CONSUMERS_SECTION = 192
PRODUCERS_PARKING = 320
RECORDS = 448

# Indices of u64 words.
WRITE_POS, ROOM_END, SEEN_READ_POS, CLOSED, PUTS, PRODUCERS_TAKEOVERS = range(8, 14)
LISTENERS, CALLS = 14, 15
CONSUMERS_SLEEPING = (CONSUMERS_PARKING + 32) // 8
READ_POS, SEEN_WRITE_POS, ENDED, RETURNED = range(32, 36)
LEASE_OFFSET, LEASE_GENERATION, CONSUMERS_TAKEOVERS, JOINERS = range(36, 40)
PRODUCERS_SLEEPING, ROOM_LISTENERS, ROOM_CALLS = range((PRODUCERS_PARKING + 32) // 8, 47)
CAPACITY = 384 // 8
FIRST_RECORD = RECORDS // 8

# Indices of u32 halves of the first header: its length, and its number with the kind below.
_FIRST_HALF = RECORDS // 4
FIRST_LENGTH = _FIRST_HALF + (sys.byteorder == "big")
FIRST_NUMBER = _FIRST_HALF + (sys.byteorder == "little")
KIND_HALF = 3
NUMBER_HALF = 4
HALF_MASK = 2**32 - 1

HEADER = 8  # bytes
LENGTH_MASK = 2**32 - 1
NUMBER_SHIFT = 34
NUMBER_ONE = 1 << NUMBER_SHIFT
NUMBER_BITS = 2**64 - NUMBER_ONE
NUMBER_MASK = 2**30 - 1
RECORD, PADDING, BLOCK, TAKEN = 0, 1 << 32, 2 << 32, 3 << 32
KIND_BITS = 3 << 32
WORD_MASK = 2**64 - 1

MIN_CAPACITY, MAX_CAPACITY = 64, 1 << 32  # bytes; fewer than 2**30 records, as their numbers need

# The word of sleepers: their count, and above it the mark of the listeners.
SLEEPING = 2**32 - 1
LISTENING = 1 << 32

# A block that has to do with a ring.
BLOCK_HEADER = 64  # bytes
B_RING, B_RING_GENERATION, B_POS, B_NBYTES, B_CALL, B_AGAIN = range(6)
B_ARMED, B_PID, B_FD, B_DEVICE, B_INODE, B_BELL = range(2, 8)
EXACT = 1 << 32  # in B_BELL: never readable in vain
