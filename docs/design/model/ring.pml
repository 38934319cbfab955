/* ring.pml -- the bytes of a ring: records, stubs, padding; what a kill inside a section leaves.
 *
 * NP producers put PUTS records of one or two words, NC consumers get records (with BATCH up to
 * two in one call) until all is taken. The ring has CAPACITY words, and a word is what a store
 * writes at once. Waiting is a guard here; park.pml has the real one. Memory is sequential: the
 * section orders everything.
 *
 *   put    in section P, if the record ends at room_end or before: R0 fill, the header, the next
 *          stub, then R1 publish
 *   room   a look at read_pos in section C; then in section P: seen_read_pos, a padding record if
 *          the end of the ring is too near (its header, the stub at index 0, R1 publish), room_end
 *   get    in section C, up to seen_write_pos: R0 copy, then R2 consume
 *   look   at write_pos in section P; then in section C: seen_write_pos
 *
 * There is no journal and no repair. A header has the number of its record: how many records were
 * put before. At write_pos stands a stub, a header that has the next number alone. So the numbers
 * at the two positions say how many were put and taken; `number_is_right` asks at every entry.
 */
#define N (NP + NC)
#include "common.pml"

#define IDS (NP * PUTS + 1)             /* record numbers: 1 + producer * PUTS + sequence */
#define MAKER(id) (((id) - 1) / PUTS)
#ifdef EQUAL
#define LENGTH(made) 1
#else
#define LENGTH(made) (1 + (made + me) % 2)
#endif

#define HEADER(number, length) ((number) * 8 + (length))
#define NUMBER(header) ((header) / 8)
#define WORDS_IN(header) ((header) & 3)
#define PADDING 4
#define DATA 64                         /* and the record's number: never what a header is */
#define AT(pos) word[(pos) % CAPACITY]
#define FULL_AT(pos) ((pos) + CAPACITY - 1)
#define INDEX (write_pos % CAPACITY)

byte word[CAPACITY];
byte write_pos;
byte room_end;
byte seen_read_pos;
byte read_pos;
byte seen_write_pos;

/* The truth, kept by nobody in the real thing. */
byte puts;                      /* records ever published */
byte gets;                      /* records ever consumed */
bool returned[IDS];             /* put has returned */
byte delivered[IDS];            /* get has returned with it */
byte in_doubt[IDS];             /* 0, or 1 + the consumer whose call has consumed it */
byte last[NP];                  /* per producer, the last record consumed */

#define OUT(p) (gone[(p) % N] != RUNNING || done[(p) % N])
#define PRODUCERS_OUT ((0 >= NP || OUT(0)) && (1 >= NP || OUT(1)))
#define CONSUMERS_OUT (OUT(NP) && (1 >= NC || OUT(NP + 1)))

#ifdef UNGUARDED
#define number_is_right(pos, count) skip
#else
#define number_is_right(pos, count) assert(NUMBER(AT(pos)) == (count))
#endif

#ifdef DIRTY_NUMBER
#define STUB AT(write_pos)
#else
#define STUB (AT(write_pos) & ~7)
#endif

#define NEED (1 + length)
#define TO_END (CAPACITY - INDEX)
#define FITS (write_pos + NEED <= room_end)
#define PADS (INDEX + NEED > CAPACITY && write_pos + TO_END + NEED <= FULL_AT(seen_read_pos))
/* Room that was known before can be too little for want of a look at the ring's end. */
#ifdef ROOM_ONLY_IF_MOVED
#define KNOWN_ROOM false
#else
#define KNOWN_ROOM \
	(PADS || (INDEX + NEED <= CAPACITY && write_pos + NEED <= FULL_AT(seen_read_pos)))
#endif

inline fill() {                                                         /* R0 fill */
	atomic { AT(write_pos + 1) = DATA + 1 + me * PUTS + made };
	if
	:: atomic { length == 2 -> AT(write_pos + 2) = DATA + 1 + me * PUTS + made }
	:: length == 1
	fi
}

inline leave(s) {
	owner[s] = 0;
	owner_died = false
}

proctype producer(byte me) {
	byte made, length, look, stub;
	bool owner_died;
	{
		length = LENGTH(made);
		do
		:: atomic {
			made < PUTS && LOCKABLE(SECTION_P) && FITS ->
			take(SECTION_P);
			number_is_right(write_pos, puts);
			stub = STUB
		   };
#ifdef PUBLISH_BEFORE_BYTES
		   atomic { AT(write_pos) = stub | length };
		   atomic { AT(write_pos + NEED) = stub + HEADER(1, 0) };
		   atomic { write_pos = write_pos + NEED; puts++ };
		   atomic { AT(write_pos - 1) = DATA + 1 + me * PUTS + made };
		   atomic { AT(write_pos - length) = DATA + 1 + me * PUTS + made };
#else
		   fill();
		   atomic { AT(write_pos) = stub | length; assert(INDEX + NEED <= CAPACITY) };
#ifndef STUB_AFTER_PUBLISH
		   atomic { AT(write_pos + NEED) = stub + HEADER(1, 0) };
#endif
		   atomic { write_pos = write_pos + NEED; puts++ };             /* R1 publish */
#ifdef STUB_AFTER_PUBLISH
		   atomic { AT(write_pos) = stub + HEADER(1, 0) };
#endif
#endif
		   atomic {
			leave(SECTION_P);
			returned[1 + me * PUTS + made] = true;
			made++;
			length = LENGTH(made);
			stub = 0
		   }
		:: atomic {                                                     /* room: a look across */
			made < PUTS && !FITS && (read_pos != seen_read_pos || KNOWN_ROOM) &&
			LOCKABLE(SECTION_C) ->
			take(SECTION_C);
			look = read_pos
		   };
		   atomic { leave(SECTION_C) };
		   atomic {
			LOCKABLE(SECTION_P) ->
			take(SECTION_P);
			number_is_right(write_pos, puts);
#ifndef NOTE_WITHOUT_MAX
			look = (look < seen_read_pos -> seen_read_pos : look);
#endif
			assert(look <= write_pos && write_pos <= FULL_AT(look))
		   };
		   atomic { seen_read_pos = look; look = 0 };
		   if
		   :: PADS ->
		      stub = STUB;
		      atomic { AT(write_pos) = stub | PADDING | (TO_END - 1) };
#ifdef NUMBER_AFTER_PADDING
		      atomic { word[0] = stub + HEADER(1, 0) };
#endif
#if !defined(PADDING_BEFORE_STUB) && !defined(NUMBER_AFTER_PADDING)
		      atomic { word[0] = stub };
#endif
		      atomic { write_pos = write_pos + TO_END };                /* R1 publish */
#ifdef PADDING_BEFORE_STUB
		      atomic { word[0] = stub };
#endif
		      stub = 0
		   :: !PADS
		   fi;
		   atomic {
#if defined(ROOM_WITHOUT_STUB)
			room_end = seen_read_pos + CAPACITY;
#else
			room_end = FULL_AT(seen_read_pos);
#endif
#ifndef ROOM_BEYOND_EDGE
			if
			:: room_end > write_pos + TO_END -> room_end = write_pos + TO_END
			:: else
			fi
#endif
		   };
		   atomic { leave(SECTION_P) }
		:: atomic { made == PUTS || CONSUMERS_OUT -> done[me] = true; break }
		od
	} unless { gone[me] != RUNNING };
	atomic { made = 0; length = 0; look = 0; stub = 0; owner_died = false }
}

/* Copy record i of this call, which begins at `next`. */
inline copy(i) {                                                        /* R0 copy */
	atomic { a[i] = AT(next + 1) - DATA };
	atomic {
		assert(a[i] > 0 && a[i] < IDS);
		assert(WORDS_IN(AT(next)) == 1 || a[i] == AT(next + 2) - DATA)
	}
}

inline note_consumed(i) {
	assert(in_doubt[a[i]] == 0);                                    /* never consumed twice */
	assert(a[i] > last[MAKER(a[i])]);                               /* in order per producer */
	last[MAKER(a[i])] = a[i];
	in_doubt[a[i]] = 1 + me;
	gets++
}

inline note_delivered(i) {
	if
	:: a[i] != 0 -> delivered[a[i]]++; assert(delivered[a[i]] == 1); a[i] = 0
	:: else
	fi
}

inline pass_padding() {
	if
	:: next != seen_write_pos && (AT(next) & PADDING) ->
		next = next + 1 + WORDS_IN(AT(next));
		assert(next % CAPACITY == 0)
	:: else
	fi
}

#define AFTER(pos) ((pos) + 1 + WORDS_IN(AT(pos)))

proctype consumer(byte me) {
	byte amount, next, look;
	byte a[2];
	bool owner_died;
	{
		do
		:: atomic {
			LOCKABLE(SECTION_C) && seen_write_pos != read_pos ->
			take(SECTION_C);
			number_is_right(read_pos, gets);
			next = read_pos;
			pass_padding();
			amount = (next != seen_write_pos -> 1 : 0);
#ifdef UNGUARDED
			assert(next <= seen_write_pos)
#endif
		   };
		   if
		   :: amount == 1 ->
		      copy(0);
		      atomic { next = AFTER(next) };
#ifdef BATCH
		      atomic { pass_padding() };
		      if
		      :: next != seen_write_pos ->
			 copy(1);
			 atomic { next = AFTER(next) }
		      :: next == seen_write_pos
		      fi
#endif
		   :: amount == 0
		   fi;
		   atomic {                                                     /* R2 consume */
			read_pos = next;
			assert(read_pos <= write_pos);
			if
			:: a[0] != 0 -> note_consumed(0)
			:: else
			fi;
			if
			:: a[1] != 0 -> note_consumed(1)
			:: else
			fi
		   };
		   atomic { leave(SECTION_C); next = 0; amount = 0 };
		   atomic { note_delivered(0); note_delivered(1) }
		:: atomic {                                                     /* a look across */
			LOCKABLE(SECTION_P) && read_pos == seen_write_pos && write_pos != seen_write_pos ->
			take(SECTION_P);
			look = write_pos
		   };
		   atomic { leave(SECTION_P) };
		   atomic {
			LOCKABLE(SECTION_C) ->
			take(SECTION_C);
			number_is_right(read_pos, gets);
#ifndef NOTE_WITHOUT_MAX
			look = (look < seen_write_pos -> seen_write_pos : look);
#endif
			assert(read_pos <= look)
		   };
		   atomic { seen_write_pos = look; look = 0 };
		   atomic { leave(SECTION_C) }
		:: atomic { PRODUCERS_OUT && write_pos == read_pos -> done[me] = true; break }
		od
	} unless { gone[me] != RUNNING };
	atomic { amount = 0; next = 0; look = 0; a[0] = 0; a[1] = 0; owner_died = false }
}

#define HELD_BY_LIVING(s) (owner[s] != 0 && gone[owner[s] - 1] != DEAD)

/* When all is over: counts, and what is left, as the next one would find it. */
proctype auditor() {
	byte id, doubts, pos, left;

	atomic {
		PRODUCERS_OUT && CONSUMERS_OUT -> over = true;
		assert(NUMBER(AT(write_pos)) == puts);
		assert(NUMBER(AT(read_pos)) == gets);
		assert(read_pos <= write_pos && write_pos - read_pos < CAPACITY);
		pos = read_pos;
		do
		:: pos != write_pos ->
			if
			:: !(AT(pos) & PADDING) ->
				id = AT(pos + 1) - DATA;
				assert(in_doubt[id] == 0);
				assert(NUMBER(AT(pos)) == gets + left);
				delivered[id]++;
				assert(delivered[id] == 1);
				left++
			:: else
			fi;
			pos = AFTER(pos)
		:: else -> break
		od;
		assert(gets + left == puts);
		id = 1;
		do
		:: id < IDS ->
			if
			:: delivered[id] == 0 && in_doubt[id] != 0 ->
				assert(gone[in_doubt[id] - 1] != RUNNING);
				doubts++
			:: else
			fi;
			if      /* returned: delivered, in doubt, or still there */
			:: returned[id] && in_doubt[id] == 0 -> assert(delivered[id] == 1)
			:: else
			fi;
			id++
		:: else -> break
		od;
#ifdef BATCH
		assert(doubts <= 2 * (deaths + stops));
#else
		assert(doubts <= deaths + stops);
#endif
		if      /* whoever is left has taken everything */
		:: done[NP] || (NC > 1 && done[(NP + 1) % N]) -> assert(write_pos == read_pos)
		:: else
		fi
	}
}

init {
	atomic {
		byte i = 0;
		room_end = FULL_AT(0);
		do
		:: i < NP -> run producer(i); i++
		:: i >= NP && i < N -> run consumer(i); i++
		:: else -> break
		od;
		i = 0;
		run reaper();
		run auditor()
	}
}
