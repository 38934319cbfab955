/* block.pml -- large records: who owns a block, whoever dies.
 *
 * A block has a tag (owner and kind) and a header with a position (of this one ring). A record in
 * the ring names a block, or is inline. Consumers get (copy and free) or lease (use and free,
 * delivered again if the holder dies). Sweepers clean up after the dead; they may run side by
 * side, and die themselves. Waiting is a guard here; memory is sequential.
 *
 *   Who owns a block
 *     the ring        if read_pos <= header < write_pos and the record there names it,
 *                     whatever its tag
 *     the family      if it is RETURNED
 *     a process       else, if tagged
 *     nobody          else
 *
 *   put      B1 tag, fill; in section P: header, record, R1 publish
 *   get      in section C: B2 retag, R2 consume; outside: copy, B3 free
 *   lease    the same with LEASED in the new tag. An inline record is first copied into a block
 *            of one's own: header, the word `lease`, J1 take (the record is TAKEN), then the
 *            copy is LEASED, then R2 consume. Whoever next looks at read_pos in section C and
 *            finds TAKEN does what is left of that. L3 end: one store of the tag; then B3 free
 *   sweep    in section C, a block at a time: finish a lease; owned by the ring: leave; no more
 *            the dead one's: leave; LEASED: the hint `returned`, then L1 return; else, outside,
 *            B3 free if the tag is still the same
 *   return   L1 return and L2 pop are one store of the tag each. Who finds no RETURNED block
 *            searches again in section C before it takes the hint back
 */
#define N (NP + NC + NS)
#define SLOTS (NP + NC)         /* sweepers own no blocks */
#if defined(NEWCOMER)
#define MORTAL(p) ((p) != NP)
#elif defined(SWEEPERS_LIVE)
#define MORTAL(p) ((p) < SLOTS)
#endif
#include "common.pml"

#define IDS (NP * PUTS + 1)
#define LEASED 16
#define RETURNED 32             /* a tag: of the family */
#define INLINE 16
#define TAKEN 32
#define OWNER_OF(tag) ((tag) & 15)
#define HOLDER(b) OWNER_OF(tag[b])

byte write_pos;
byte read_pos;
byte record[CAPACITY];          /* 1 + block, or INLINE | record number, perhaps | TAKEN */
byte tag[NB];                   /* 0 free, 1 + slot, perhaps | LEASED, or RETURNED */
byte header[NB];                /* position */
byte content[NB];               /* record number */
bool hint;                      /* there may be RETURNED blocks; section C */
byte lease_word;                /* the block into which a lease copies an inline record; section C */
bool swept[SLOTS];

/* The truth, kept by nobody in the real thing. */
bool put_done[IDS];
byte delivered[IDS];            /* get returned with it, or the lease was closed */
byte in_doubt[IDS];             /* 1 + the consumer whose unfinished get has consumed it */
bool consumed[IDS];             /* read_pos has passed it */
byte handed[IDS];               /* how often it was redelivered */

#define IN_RING(b) (read_pos < write_pos && \
	(record[read_pos % CAPACITY] == 1 + (b) || \
	 (read_pos + 1 < write_pos && record[(read_pos + 1) % CAPACITY] == 1 + (b))))
#define ANY_RETURNED (tag[0] == RETURNED || tag[1 % NB] == RETURNED || tag[2 % NB] == RETURNED)

#define NOT_BUSY(p) (gone[(p) % N] != RUNNING || done[(p) % N])
#define DUE(p) ((p) < SLOTS && gone[(p) % N] == DEAD && !swept[(p) % SLOTS])
#define ANY_DUE (DUE(0) || DUE(1) || DUE(2) || DUE(3))
#define IDLE_SLOT(p) ((p) >= SLOTS || NOT_BUSY(p))
#define PRODUCERS_OUT ((0 >= NP || NOT_BUSY(0)) && (1 >= NP || NOT_BUSY(1)))
#define CONSUMERS_OUT \
	(NOT_BUSY(NP) && (1 >= NC || NOT_BUSY(NP + 1)) && (2 >= NC || NOT_BUSY(NP + 2)))
#define SLOTS_OUT (IDLE_SLOT(0) && IDLE_SLOT(1) && IDLE_SLOT(2) && IDLE_SLOT(3))

/* A tag has a generation, which grows with each allocation. It matters where a slot is used again. */
#if defined(NEWCOMER) && !defined(FREE_WITHOUT_GENERATION)
byte generation[NB];
#define NEXT_GENERATION generation[block]++
#define GENERATION_OF(b) generation[b]
#else
#define NEXT_GENERATION skip
#define GENERATION_OF(b) 0
#endif

#ifdef NEWCOMER                 /* the first consumer begins in the slot of process 0, once swept */
#define BORN(p) ((p) != NP || swept[0] || done[0] || gone[0] >= STOPPED)
#define MINE (me == NP -> 1 : 1 + me)
#define LIVES_IN(slot) ((slot) == 0 && swept[0] -> NP : (slot))
#else
#define MINE (1 + me)
#define BORN(p) true
#define LIVES_IN(slot) (slot)
#endif
inline allocate() {                                                     /* B1 tag */
	if
	:: tag[0] == 0 -> block = 0
	:: NB > 1 && tag[1 % NB] == 0 -> block = 1
	:: NB > 2 && tag[2 % NB] == 0 -> block = 2
	:: NB > 3 && tag[3 % NB] == 0 -> block = 3
	fi;
	NEXT_GENERATION;
	tag[block] = MINE
}

inline release() {                                                      /* B3 free */
	assert(OWNER_OF(tag[block]) == MINE);
	assert(!IN_RING(block));
	tag[block] = 0
}

#define NONE_FREE (tag[0] != 0 && (NB < 2 || tag[1 % NB] != 0) && \
	(NB < 3 || tag[2 % NB] != 0) && (NB < 4 || tag[3 % NB] != 0))
#define FULL (write_pos - read_pos == CAPACITY)

proctype producer(byte me) {
	byte made, block;
	bool owner_died;
	{
		do
		:: atomic { made == PUTS -> done[me] = true; break }
#ifdef INLINE_RECORDS
		:: atomic { made < PUTS && FULL && CONSUMERS_OUT -> done[me] = true; break }
		:: atomic { made < PUTS && LOCKABLE(SECTION_P) && !FULL -> take(SECTION_P) };
		   atomic { record[write_pos % CAPACITY] = INLINE | (1 + me * PUTS + made) };
#else
		:: atomic { made < PUTS && NONE_FREE && CONSUMERS_OUT -> done[me] = true; break }
		:: atomic {
			made < PUTS && !NONE_FREE ->
			allocate();
			content[block] = 1 + me * PUTS + made                   /* fill */
		   };
		   if
		   :: atomic { LOCKABLE(SECTION_P) && !FULL -> take(SECTION_P) }
		   :: atomic { FULL && CONSUMERS_OUT -> release(); done[me] = true; break }
		   fi;
#ifndef HEADER_AFTER_PUBLISH
		   atomic { header[block] = write_pos };
#endif
		   atomic { record[write_pos % CAPACITY] = 1 + block };
#endif
		   atomic { write_pos++ };                                      /* R1 publish */
#ifdef HEADER_AFTER_PUBLISH
		   atomic { header[block] = write_pos - 1 };
#endif
		   atomic {
			owner[SECTION_P] = 0;
			put_done[1 + me * PUTS + made] = true;
			made++;
			block = 0;
			owner_died = false
		   }
		od
	} unless { gone[me] != RUNNING };
	atomic { made = 0; block = 0; owner_died = false }
}

#if defined(LEASE)
#define LEASES(p) true
#elif defined(MIXED)
#define LEASES(p) ((p) == NP)           /* the first consumer leases, the other gets */
#else
#define LEASES(p) false
#endif
#define MY_TAG (LEASES(me) -> MINE | LEASED : MINE)

inline in_hand(number) {
	if
	:: LEASES(me)
	:: else -> in_doubt[number] = 1 + me
	fi
}

inline deliver(number) {
	delivered[number]++;
	assert(delivered[number] == 1);
	in_doubt[number] = 0
}

/* Outside any section: read the block, twice, and give it back. */
inline use() {
	atomic { id = content[block]; assert(OWNER_OF(tag[block]) == MINE) };
	if
	:: atomic {
		LEASES(me) ->
		assert(content[block] == id);
#ifndef END_BY_FREE
		tag[block] = MINE;                                              /* L3 end */
#endif
		deliver(id);
		id = 0
	   };
	   atomic { release(); block = 0 }
	:: atomic { !LEASES(me) -> assert(content[block] == id); release(); block = 0 };
	   atomic { deliver(id); id = 0 }
	fi
}

#if defined(INLINE_RECORDS) && (defined(LEASE) || defined(MIXED))
#define COPIES(p) LEASES(p)     /* leases inline records, so it needs a block of its own first */
#else
#define COPIES(p) false
#endif

#define PENDING (read_pos != write_pos && (record[read_pos % CAPACITY] & TAKEN))
#define PLAIN(b) ((tag[b] & (LEASED | RETURNED)) == 0 && tag[b] != 0)

inline store_read_pos() {                                               /* R2 consume */
	assert(read_pos < write_pos);
	read_pos++
}

/* Section C is held: do what is left of a lease that was broken off after J1. */
inline finish_lease() {
#if defined(INLINE_RECORDS) && !defined(NO_FINISH)
	if
	:: PENDING ->
#ifndef FINISH_CONSUMES_FIRST
	   if
	   :: atomic { PLAIN(lease_word) -> tag[lease_word] = tag[lease_word] | LEASED }
	   :: !PLAIN(lease_word)
	   fi;
	   atomic { note_taken(record[read_pos % CAPACITY] & 15); store_read_pos() }
#else
	   atomic { note_taken(record[read_pos % CAPACITY] & 15); store_read_pos() };
	   if
	   :: atomic { PLAIN(lease_word) -> tag[lease_word] = tag[lease_word] | LEASED }
	   :: !PLAIN(lease_word)
	   fi
#endif
	:: !PENDING
	fi
#else
	skip
#endif
}

inline note_taken(number) {
	assert(!consumed[number]);
	consumed[number] = true
}

/* The steps of a lease of an inline record. */
#define WORDS   atomic { lease_word = block };
#define TAKE    atomic { record[first % CAPACITY] = record[first % CAPACITY] | TAKEN }; /* J1 take */
#define LEASE_IT atomic { tag[block] = MY_TAG };
#define CONSUME atomic { note_taken(record[first % CAPACITY] & 15); store_read_pos(); spare = 0 };

#if defined(LEASED_BEFORE_TAKEN)
#define LEASE_INLINE WORDS LEASE_IT TAKE CONSUME
#elif defined(TAKEN_AFTER_CONSUME)
#define LEASE_INLINE WORDS CONSUME TAKE LEASE_IT
#elif defined(CONSUME_BEFORE_LEASED)
#define LEASE_INLINE WORDS TAKE CONSUME LEASE_IT
#elif defined(TAKEN_BEFORE_WORDS)
#define LEASE_INLINE TAKE WORDS LEASE_IT CONSUME
#elif defined(NO_TAKEN)
#define LEASE_INLINE LEASE_IT CONSUME
#else
#define LEASE_INLINE WORDS TAKE LEASE_IT CONSUME
#endif

proctype consumer(byte me) {
	byte block, spare, id, first;   /* spare: 1 + a block for the copy of an inline record */
	bool owner_died;
	{
		atomic { BORN(me) };
		do
		:: atomic {
			COPIES(me) && spare == 0 && !NONE_FREE ->
			allocate();
			spare = 1 + block;
			block = 0
		   }
		:: atomic {                     /* a search, outside: the block found, or none */
			hint ->
			if
			:: tag[0] == RETURNED -> block = 1
			:: tag[1 % NB] == RETURNED -> block = 1 + 1 % NB
			:: tag[2 % NB] == RETURNED -> block = 1 + 2 % NB
			:: !ANY_RETURNED -> block = 0
			fi
		   };
		   atomic {
			LOCKABLE(SECTION_C) -> take(SECTION_C);
			if
#ifndef CLEAR_WITHOUT_SEARCH
			:: block == 0 && tag[0] == RETURNED -> block = 1
			:: block == 0 && tag[1 % NB] == RETURNED -> block = 1 + 1 % NB
			:: block == 0 && tag[2 % NB] == RETURNED -> block = 1 + 2 % NB
			:: block == 0 && !ANY_RETURNED
#else
			:: block == 0
#endif
			:: block != 0
			fi
		   };
		   if
#ifdef POP_WITHOUT_LOOK
		   :: block != 0 ->
#else
		   :: block != 0 && tag[block - 1] == RETURNED ->
#endif
		      atomic {
			block--;
			tag[block] = MY_TAG;                                    /* L2 pop */
			in_hand(content[block])
		      };
		      atomic { owner[SECTION_C] = 0; owner_died = false };
		      use()
#ifndef POP_WITHOUT_LOOK
		   :: block != 0 && tag[block - 1] != RETURNED && ANY_RETURNED ->
		      atomic { owner[SECTION_C] = 0; owner_died = false; block = 0 }
		   :: block != 0 && tag[block - 1] != RETURNED && !ANY_RETURNED ->
		      atomic { hint = false };
		      atomic { owner[SECTION_C] = 0; owner_died = false; block = 0 }
#endif
		   :: block == 0 ->
		      atomic { hint = false };
		      atomic { owner[SECTION_C] = 0; owner_died = false }
		   fi
#ifdef INLINE_RECORDS
		:: atomic {
			COPIES(me) && spare != 0 &&
			LOCKABLE(SECTION_C) && read_pos != write_pos -> take(SECTION_C)
		   };
		   finish_lease();
		   if
		   :: read_pos != write_pos ->
#ifdef TAKEN_BEFORE_COPY
		      atomic { block = spare - 1; first = read_pos };
		      TAKE
#endif
		      atomic {
			block = spare - 1;
			first = read_pos;
			content[block] = record[read_pos % CAPACITY] & 15;
			header[block] = read_pos + 1
		      };
		      LEASE_INLINE
		      atomic { owner[SECTION_C] = 0; owner_died = false; first = 0 };
		      use()
		   :: read_pos == write_pos ->
		      atomic { owner[SECTION_C] = 0; owner_died = false }
		   fi
		:: atomic {
			!COPIES(me) &&
			LOCKABLE(SECTION_C) && read_pos != write_pos -> take(SECTION_C)
		   };
		   finish_lease();
		   if
		   :: read_pos != write_pos ->
		      atomic { id = record[read_pos % CAPACITY] & 15 };
		      atomic { note_taken(id); in_hand(id); store_read_pos() };
		      atomic { owner[SECTION_C] = 0; owner_died = false };
		      atomic { deliver(id); id = 0 }
		   :: read_pos == write_pos ->
		      atomic { owner[SECTION_C] = 0; owner_died = false }
		   fi
#else
		:: atomic {
			LOCKABLE(SECTION_C) && read_pos != write_pos ->
			take(SECTION_C);
			block = record[read_pos % CAPACITY] - 1
		   };
#ifndef RETAG_AFTER_CONSUME
		   atomic { tag[block] = MY_TAG };                              /* B2 retag */
		   atomic { note_taken(content[block]); in_hand(content[block]); store_read_pos() };
#else
		   atomic { note_taken(content[block]); in_hand(content[block]); store_read_pos() };
		   atomic { tag[block] = MY_TAG };
#endif
		   atomic { owner[SECTION_C] = 0; owner_died = false };
		   use()
#endif
		:: atomic {
			PRODUCERS_OUT && read_pos == write_pos && !hint ->
			if
			:: spare != 0 -> block = spare - 1; release()
			:: else
			fi;
			done[me] = true;
			break
		   }
		:: atomic { STUCK(SECTION_C) -> gone[me] = EXCUSED; false }
		od
	} unless { gone[me] != RUNNING };
	atomic { block = 0; spare = 0; id = 0; first = 0; owner_died = false }
}

#define BELONGS(b, slot) (HOLDER(b) == 1 + (slot))

/* Whether the slot is still that of the dead. */
#ifdef SWEEP_WITHOUT_DEAD
#define DYING(slot) true
#else
#define DYING(slot) (!swept[slot])
#endif

/* What becomes of one block of the dead. Section C is held. `frees`: it is the dead one's own. */
inline judge() {
#ifdef RECORD_BEFORE_POSITION
	atomic { named = (record[header[block] % CAPACITY] == 1 + block) };
	atomic { written = write_pos };
#else
	atomic { written = write_pos };
	atomic { named = (record[header[block] % CAPACITY] == 1 + block) };
#endif
	atomic {
		in_ring = (read_pos <= header[block] && header[block] < written
#ifndef SWEEP_BY_POSITION_ONLY
			&& named
#endif
			);
#ifdef SWEEP_BY_TAG_ONLY
		in_ring = false;
#endif
		written = 0;
		named = false;
#ifndef SWEEP_TRUSTS_FIRST_LOOK
		looked = tag[block];
		if
		:: BELONGS(block, slot) && GENERATION_OF(block) == meant && DYING(slot)
		:: else -> in_ring = true               /* not the dead one's any more */
		fi
#endif
	};
	if
	:: in_ring -> skip
	:: !in_ring && (looked & LEASED) ->
#ifndef HINT_AFTER_TAG
	   atomic { hint = true };
#endif
	   atomic {
		tag[block] = RETURNED;                                          /* L1 return */
		handed[content[block]]++;
		assert(handed[content[block]] <= deaths)
	   };
#ifdef HINT_AFTER_TAG
	   atomic { hint = true }
#else
	   skip
#endif
	:: !in_ring && !(looked & LEASED) -> frees = true
	fi
}

proctype sweeper(byte me) {
	byte slot, block, written, looked, meant;
	bool owner_died, named, in_ring, frees;
	{
		do
		:: atomic {
			if
			:: DUE(0) -> slot = 0
			:: DUE(1) -> slot = 1
			:: DUE(2) -> slot = 2
			:: DUE(3) -> slot = 3
			fi
		   };
		   do
		   :: atomic { block < NB && BELONGS(block, slot) ->
			looked = tag[block];                                    /* a look */
			meant = GENERATION_OF(block)
		      };
		      atomic { LOCKABLE(SECTION_C) -> take(SECTION_C) };
#ifndef JUDGE_WITHOUT_FINISH
		      finish_lease();
#endif
		      judge();
		      atomic { owner[SECTION_C] = 0; owner_died = false; in_ring = false };
		      atomic {
			if
#ifdef FREE_WITHOUT_COMPARE
			:: frees ->
#else
			:: frees && tag[block] == looked && GENERATION_OF(block) == meant ->
#endif
				assert(HOLDER(block) != 0 && gone[LIVES_IN(HOLDER(block) - 1)] == DEAD);
				assert(!IN_RING(block));
				tag[block] = 0                                  /* B3 free */
			:: else
			fi;
			frees = false;
			looked = 0;
			meant = 0;
			block++
		      }
		   :: atomic { block < NB && !BELONGS(block, slot) -> block++ }
		   :: atomic { block == NB -> block = 0; swept[slot] = true; slot = 0; break }
		   od
		:: atomic { SLOTS_OUT && !ANY_DUE -> done[me] = true; break }
		:: atomic { STUCK(SECTION_C) -> gone[me] = EXCUSED; false }
		od
	} unless { gone[me] != RUNNING };
	atomic {
		slot = 0; block = 0; written = 0; looked = 0; meant = 0;
		owner_died = false; named = false; in_ring = false; frees = false
	}
}

#define SWEEPERS_OUT (NOT_BUSY(NP + NC) && (NS < 2 || NOT_BUSY(NP + NC + 1)))

/* Whoever asks once more finds it: it is RETURNED and the hint says so; or a sweep is still due. */
#define HAS(b, id) (content[(b) % NB] == (id) && ((tag[(b) % NB] == RETURNED && hint) || \
	(HOLDER((b) % NB) != 0 && gone[LIVES_IN(HOLDER((b) % NB) - 1)] != RUNNING && \
	 tag[(b) % NB] & LEASED && (ANY_DUE || stops > 0))))
#define HOLDS(p, id) ((p) < write_pos && (p) >= read_pos && \
	((record[(p) % CAPACITY] & (INLINE | TAKEN)) -> (record[(p) % CAPACITY] & 15) == (id) : \
	 content[(record[(p) % CAPACITY] - 1) % NB] == (id)))

proctype auditor() {
	byte b, id, doubts;

	atomic {
		SLOTS_OUT && SWEEPERS_OUT -> over = true;
		do
		:: b < NB && !STUCK(SECTION_C) ->
			if      /* no leak: a block that nobody will ever look at again */
			:: tag[b] == RETURNED -> assert(hint && !IN_RING(b))
			:: tag[b] != 0 && tag[b] != RETURNED && !IN_RING(b) ->
				assert(gone[LIVES_IN(HOLDER(b) - 1)] >= STOPPED)
			:: tag[b] == 0 -> assert(!IN_RING(b))
			:: else
			fi;
			b++
		:: else -> break
		od;
		id = 1;
		do
		:: id < IDS ->
			if
			:: in_doubt[id] != 0 ->
				assert(delivered[id] == 0 && gone[in_doubt[id] - 1] != RUNNING);
				doubts++
			:: put_done[id] && delivered[id] == 0 && in_doubt[id] == 0 ->
				assert(HOLDS(read_pos, id) || HOLDS(read_pos + 1, id) ||
				       HAS(0, id) || HAS(1, id) || HAS(2, id))
			:: else
			fi;
			id++
		:: else -> break
		od;
		assert(doubts <= deaths + stops)
	}
}

init {
	atomic {
		byte i = 0;
		do
		:: i < NP -> run producer(i); i++
		:: i >= NP && i < NP + NC -> run consumer(i); i++
		:: i >= NP + NC && i < N -> run sweeper(i); i++
		:: else -> break
		od;
		i = 0;
		run reaper();
		run auditor()
	}
}
