/* block.pml -- large records: who owns a block, whoever dies.
 *
 * A block has a cell with an owner tag, and a header with a position (of this one ring). A record
 * in the ring names a block, or is inline. Consumers get (copy and free) or lease (use and free,
 * redelivered if the holder dies). Sweepers clean up after the dead; they may run side by side,
 * and die themselves. Waiting is a guard here; memory is sequential.
 *
 *   Who owns a block
 *     the ring        if read_pos <= header < write_pos and the record there names it,
 *                     whatever its tag
 *     the list        if it is on the redelivery list, whatever its tag
 *     a process       else, if tagged
 *     nobody          else
 *
 *   put      B1 tag, fill; in section P: header, record, R1 publish
 *   get      in section C: B2 retag, R2 consume; outside: copy, B3 free
 *   lease    the same with LEASED in the new tag. An inline record is first copied into a block
 *            of one's own: header, J1 intend, LEASED, R2 consume, J3 clear. Whoever inherits the
 *            section takes LEASED away again if R2 was not reached
 *   sweep    in section C, a block at a time: owned by ring or list: leave; LEASED: L1 push to
 *            the list; else B3 free
 *   list     L1 push: link, then head. L2 pop: retag, then head. Section C
 */
#define N (NP + NC + NS)
#define SLOTS (NP + NC)         /* sweepers own no blocks */
#ifdef SWEEPERS_LIVE
#define MORTAL(p) ((p) < SLOTS)
#endif
#include "common.pml"

#define IDS (NP * PUTS + 1)
#define LEASED 16
#define INLINE 16
#define OWNER_OF(tag) ((tag) & 15)
#define HOLDER(b) OWNER_OF(tag[b])

byte write_pos;
byte read_pos;
byte record[CAPACITY];          /* 1 + block, or INLINE | record number */
byte tag[NB];                   /* 0 free, 1 + slot, perhaps | LEASED */
byte header[NB];                /* position */
byte content[NB];               /* record number */
byte next[NB];
byte head;                      /* redelivery list: 0, or 1 + block */
byte lease_intent;              /* journal in section C: 0, or 1 + the block of a lease under way */
bool swept[SLOTS];

/* The truth, kept by nobody in the real thing. */
bool returned[IDS];
byte delivered[IDS];            /* get returned with it, or the lease was closed */
byte in_doubt[IDS];             /* 1 + the consumer whose unfinished get has consumed it */
bool consumed[IDS];             /* read_pos has passed it */
byte handed[IDS];               /* how often it was redelivered */

#define IN_RING(b) (read_pos < write_pos && \
	(record[read_pos % CAPACITY] == 1 + (b) || \
	 (read_pos + 1 < write_pos && record[(read_pos + 1) % CAPACITY] == 1 + (b))))
#define IN_LIST(b) (head != 0 && (head == 1 + (b) || \
	(next[head - 1] != 0 && (next[head - 1] == 1 + (b) || \
	 (next[next[head - 1] - 1] == 1 + (b) && next[head - 1] != 0)))))

#define NOT_BUSY(p) (gone[(p) % N] != RUNNING || done[(p) % N])
#define DUE(p) ((p) < SLOTS && gone[(p) % N] == DEAD && !swept[(p) % SLOTS])
#define ANY_DUE (DUE(0) || DUE(1) || DUE(2) || DUE(3))
#define IDLE_SLOT(p) ((p) >= SLOTS || NOT_BUSY(p))
#define PRODUCERS_OUT ((0 >= NP || NOT_BUSY(0)) && (1 >= NP || NOT_BUSY(1)))
#define CONSUMERS_OUT (NOT_BUSY(NP) && (1 >= NC || NOT_BUSY(NP + 1)))
#define SLOTS_OUT (IDLE_SLOT(0) && IDLE_SLOT(1) && IDLE_SLOT(2) && IDLE_SLOT(3))
#define LEASE_OPEN(b) ((b) < NB && (tag[(b) % NB] & LEASED) && \
	gone[HOLDER((b) % NB) - 1] == RUNNING)
#define ANY_LEASE (LEASE_OPEN(0) || LEASE_OPEN(1) || LEASE_OPEN(2) || LEASE_OPEN(3))

inline allocate() {                                                     /* B1 tag */
	if
	:: tag[0] == 0 -> block = 0
	:: NB > 1 && tag[1 % NB] == 0 -> block = 1
	:: NB > 2 && tag[2 % NB] == 0 -> block = 2
	:: NB > 3 && tag[3 % NB] == 0 -> block = 3
	fi;
	tag[block] = 1 + me
}

inline release() {                                                      /* B3 free */
	assert(OWNER_OF(tag[block]) == 1 + me);
	assert(!IN_RING(block) && !IN_LIST(block));
	tag[block] = 0
}

#define NONE_FREE (tag[0] != 0 && (NB < 2 || tag[1 % NB] != 0) && \
	(NB < 3 || tag[2 % NB] != 0) && (NB < 4 || tag[3 % NB] != 0))
#define FULL (write_pos - read_pos == CAPACITY)

#ifdef NEWCOMER                 /* process 1 begins when process 0 is over, and takes its slot */
#define BORN(p) ((p) != 1 || swept[0] || done[0] || gone[0] >= STOPPED)
#else
#define BORN(p) true
#endif

proctype producer(byte me) {
	byte made, block;
	bool owner_died;
	{
		atomic { BORN(me) };
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
			returned[1 + me * PUTS + made] = true;
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
#define MY_TAG (LEASES(me) -> (1 + me) | LEASED : 1 + me)

inline take_from_ring(number) {                                         /* at R2 consume */
	assert(!consumed[number]);
	consumed[number] = true;
	in_hand(number)
}

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
	atomic { id = content[block]; assert(OWNER_OF(tag[block]) == 1 + me) };
	if
	:: atomic {
		LEASES(me) ->
		assert(content[block] == id);
		release();
		deliver(id);
		id = 0;
		block = 0
	   }
	:: atomic { !LEASES(me) -> assert(content[block] == id); release(); block = 0 };
	   atomic { deliver(id); id = 0 }
	fi
}

#if defined(INLINE_RECORDS) && (defined(LEASE) || defined(MIXED))
#define COPIES(p) LEASES(p)     /* leases inline records, so it needs a block of its own first */
#else
#define COPIES(p) false
#endif

/* A drained ring has not ended while a lease is open: its holder may die. */
#ifdef END_IGNORES_LEASES
#define NOTHING_TO_COME true
#else
#define NOTHING_TO_COME (!ANY_DUE && !ANY_LEASE)
#endif

/* Section C is inherited: a lease of an inline record that did not get as far as R2 is void. */
inline repair_lease() {
#if defined(INLINE_RECORDS) && !defined(NO_LEASE_REPAIR)
	if
	:: owner_died && lease_intent != 0 ->
	   if
	   :: atomic { read_pos > header[lease_intent - 1] }
	   :: atomic {
		read_pos <= header[lease_intent - 1] ->
		tag[lease_intent - 1] = OWNER_OF(tag[lease_intent - 1])
	      }
	   fi;
	   atomic { lease_intent = 0 }
	:: !(owner_died && lease_intent != 0)
	fi
#else
	skip
#endif
}

proctype consumer(byte me) {
	byte block, spare, id;          /* spare: 1 + a block for the copy of an inline record */
	bool owner_died;
	{
		do
		:: atomic {
			COPIES(me) && spare == 0 && !NONE_FREE ->
			allocate();
			spare = 1 + block;
			block = 0
		   }
		:: atomic { LOCKABLE(SECTION_C) && head != 0 -> take(SECTION_C) };
		   repair_lease();
		   atomic { block = head - 1 };
#ifndef POP_BEFORE_RETAG
		   atomic { tag[block] = MY_TAG };                              /* L2 pop */
		   atomic { head = next[block]; in_hand(content[block]) };
#else
		   atomic { head = next[block]; in_hand(content[block]) };
		   atomic { tag[block] = MY_TAG };
#endif
		   atomic { owner[SECTION_C] = 0; owner_died = false };
		   use()
#ifdef INLINE_RECORDS
		:: atomic {
			COPIES(me) && spare != 0 &&
			LOCKABLE(SECTION_C) && head == 0 && read_pos != write_pos -> take(SECTION_C)
		   };
		   repair_lease();
		   atomic { block = spare - 1; content[block] = record[read_pos % CAPACITY] & 15 };
#ifndef HEADER_AFTER_LEASED
		   atomic { header[block] = read_pos };
#endif
#ifndef INTENT_AFTER_LEASED
		   atomic { lease_intent = 1 + block };                         /* J1 intend */
#endif
#ifndef LEASED_AFTER_CONSUME
		   atomic { tag[block] = MY_TAG };
#endif
#ifdef INTENT_AFTER_LEASED
		   atomic { lease_intent = 1 + block };
#endif
#ifdef HEADER_AFTER_LEASED
		   atomic { header[block] = read_pos };
#endif
		   atomic { take_from_ring(content[block]); read_pos++; spare = 0 };    /* R2 consume */
#ifdef LEASED_AFTER_CONSUME
		   atomic { tag[block] = MY_TAG };
#endif
		   atomic { lease_intent = 0 };                                 /* J3 clear */
		   atomic { owner[SECTION_C] = 0; owner_died = false };
		   use()
		:: atomic {
			!COPIES(me) &&
			LOCKABLE(SECTION_C) && head == 0 && read_pos != write_pos -> take(SECTION_C)
		   };
		   repair_lease();
		   atomic { id = record[read_pos % CAPACITY] & 15 };
		   atomic { take_from_ring(id); read_pos++ };                   /* R2 consume */
		   atomic { owner[SECTION_C] = 0; owner_died = false };
		   atomic { deliver(id); id = 0 }
#else
		:: atomic {
			LOCKABLE(SECTION_C) && head == 0 && read_pos != write_pos ->
			take(SECTION_C);
			block = record[read_pos % CAPACITY] - 1
		   };
#ifndef RETAG_AFTER_CONSUME
		   atomic { tag[block] = MY_TAG };                              /* B2 retag */
		   atomic { take_from_ring(content[block]); read_pos++ };       /* R2 consume */
#else
		   atomic { take_from_ring(content[block]); read_pos++ };
		   atomic { tag[block] = MY_TAG };
#endif
		   atomic { owner[SECTION_C] = 0; owner_died = false };
		   use()
#endif
		:: atomic {
			PRODUCERS_OUT && read_pos == write_pos && head == 0 && NOTHING_TO_COME ->
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
	atomic { block = 0; spare = 0; id = 0; owner_died = false }
}

#ifdef SWEEP_BY_SLOT
#define BELONGS(b, slot) (HOLDER(b) == 1 + (slot) || ((slot) == 0 && HOLDER(b) == 2))
#else
#define BELONGS(b, slot) (HOLDER(b) == 1 + (slot))
#endif

/* What becomes of one block of the dead. Section C is held, and its tag was read again. */
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
		in_list = IN_LIST(block);
#ifdef SWEEP_FORGETS_LIST
		in_list = false;
#endif
		written = 0;
		named = false
	};
	if
	:: in_ring || in_list -> skip
	:: !in_ring && !in_list && (tag[block] & LEASED) ->
	   atomic {
		next[block] = head;                                             /* L1 push */
		handed[content[block]]++;
		assert(handed[content[block]] <= deaths)
	   };
	   atomic { head = 1 + block }
	:: !in_ring && !in_list && !(tag[block] & LEASED) ->
	   atomic {
		assert(HOLDER(block) != 0 && gone[HOLDER(block) - 1] == DEAD);
		assert(!IN_RING(block) && !IN_LIST(block));
		tag[block] = 0                                                  /* B3 free */
	   }
	fi
}

proctype sweeper(byte me) {
	byte slot, block, written;
	bool owner_died, named, in_ring, in_list;
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
		   :: block < NB && BELONGS(block, slot) ->                     /* a look, no section */
		      atomic { LOCKABLE(SECTION_C) -> take(SECTION_C) };
		      repair_lease();
		      if
#ifdef SWEEP_TRUSTS_FIRST_LOOK
		      :: true ->
			 judge()
#else
		      :: BELONGS(block, slot) ->
			 judge()
		      :: !BELONGS(block, slot)
#endif
		      fi;
		      atomic {
			owner[SECTION_C] = 0;
			owner_died = false;
			in_ring = false;
			in_list = false;
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
		slot = 0; block = 0; written = 0;
		owner_died = false; named = false; in_ring = false; in_list = false
	}
}

#define SWEEPERS_OUT (NOT_BUSY(NP + NC) && (NS < 2 || NOT_BUSY(NP + NC + 1)))
#define SERVED (done[NP] || (NC > 1 && done[(NP + 1) % N]))     /* a consumer saw it to the end */

proctype auditor() {
	byte b, id, doubts;

	atomic {
		SLOTS_OUT && SWEEPERS_OUT -> over = true;
		do
		:: b < NB && !STUCK(SECTION_C) ->
			if      /* no leak: a block that nobody will ever look at again */
			:: tag[b] != 0 && !IN_RING(b) && !IN_LIST(b) ->
				assert(gone[HOLDER(b) - 1] >= STOPPED)
			:: tag[b] == 0 ->
				assert(!IN_RING(b) && !IN_LIST(b))
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
			:: returned[id] && delivered[id] == 0 && in_doubt[id] == 0 && SERVED ->
				assert(stops > 0)               /* a stopped lease holder keeps it */
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
