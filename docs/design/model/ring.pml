/* ring.pml -- the journal: what a kill inside a section leaves behind, and how it is repaired.
 *
 * NP producers put PUTS records of two words, NC consumers get records (with BATCH up to two in
 * one call) until all is taken. Waiting is a guard here; park.pml has the real one. Memory is
 * sequential: the section orders everything that the journal is made of.
 *
 *   put   R0 fill, J1 intend, R1 publish, J2 count, J3 clear
 *   get   R0 copy, J1 intend, R2 consume, J2 count, J3 clear
 *
 * Repair, by whoever inherits the section: if an intent stands and the position already equals
 * it, finish the count; in any case clear the intent.
 */
#define N (NP + NC)
#include "common.pml"

#define IDS (NP * PUTS + 1)             /* record numbers: 1 + producer * PUTS + sequence */
#define MAKER(id) (((id) - 1) / PUTS)

byte position[2];               /* write_pos under P, read_pos under C */
byte count[2];                  /* write_count, read_count */
bool intent[2];                 /* the journals, each in its own section */
byte intent_position[2];
byte intent_count[2];
byte word0[CAPACITY];
byte word1[CAPACITY];

/* The truth, kept by nobody in the real thing. */
bool returned[IDS];             /* put has returned */
byte delivered[IDS];            /* get has returned with it */
byte in_doubt[IDS];             /* 0, or 1 + the consumer whose call has consumed it */
byte last[NP];                  /* per producer, the last record consumed */

#define write_pos position[SECTION_P]
#define read_pos position[SECTION_C]

inline set_intent(side, amount) {                                       /* J1 intend */
#ifndef NO_JOURNAL
#ifdef FLAG_FIRST
	atomic { intent[side] = true };
	atomic { intent_count[side] = count[side] + amount };
	atomic { intent_position[side] = position[side] + amount }
#else
	atomic { intent_position[side] = position[side] + amount };
	atomic { intent_count[side] = count[side] + amount };
	atomic { intent[side] = true }
#endif
#else
	skip
#endif
}

inline set_count(side, amount) {                                        /* J2 count, J3 clear */
#ifdef CLEAR_FIRST
	atomic { intent[side] = false };
	atomic { count[side] = count[side] + amount }
#else
	atomic { count[side] = count[side] + amount };
	atomic { intent[side] = false }
#endif
}

/* The heir's first act. It may die here as well: the next heir begins again. */
inline repair(side) {
#ifndef NO_REPAIR
	if
	:: owner_died && intent[side] ->
#ifdef REPAIR_TRUSTS_INTENT
		atomic { count[side] = intent_count[side] };
#else
		if
		:: atomic { position[side] == intent_position[side] -> count[side] = intent_count[side] }
		:: position[side] != intent_position[side]
		fi;
#endif
		atomic { intent[side] = false; owner_died = false }
	:: !(owner_died && intent[side])
	fi
#else
	skip
#endif
}

#define OUT(p) (gone[(p) % N] != RUNNING || done[(p) % N])
#define PRODUCERS_OUT ((0 >= NP || OUT(0)) && (1 >= NP || OUT(1)))
#define CONSUMERS_OUT (OUT(NP) && (1 >= NC || OUT(NP + 1)))

inline fill(id) {                                                       /* R0 fill */
	atomic { word0[write_pos % CAPACITY] = id };
	atomic { word1[write_pos % CAPACITY] = id }
}

proctype producer(byte me) {
	byte made;
	bool owner_died;
	{
		do
		:: atomic {
			made < PUTS && LOCKABLE(SECTION_P) && write_pos - read_pos < CAPACITY ->
			take(SECTION_P)
		   };
		   repair(SECTION_P);
#ifndef PUBLISH_BEFORE_BYTES
		   fill(1 + me * PUTS + made);
#endif
		   set_intent(SECTION_P, 1);
#ifdef COUNT_BEFORE_PUBLISH
		   atomic { count[SECTION_P]++ };
		   atomic { position[SECTION_P]++ };
		   atomic { intent[SECTION_P] = false };
#else
		   atomic { position[SECTION_P]++ };                            /* R1 publish */
#ifdef PUBLISH_BEFORE_BYTES
		   fill(1 + me * PUTS + made);
#endif
		   set_count(SECTION_P, 1);
#endif
		   atomic {
			owner[SECTION_P] = 0;
			owner_died = false;
			returned[1 + me * PUTS + made] = true;
			made++
		   }
		:: atomic { made == PUTS || CONSUMERS_OUT -> done[me] = true; break }
		od
	} unless { gone[me] != RUNNING };
	atomic { made = 0; owner_died = false }
}

/* Copy record i of this call. */
inline copy(i) {                                                        /* R0 copy */
	atomic { a[i] = word0[(first + i) % CAPACITY] };
	atomic { assert(a[i] != 0 && a[i] == word1[(first + i) % CAPACITY]) }
}

inline note_consumed(i) {
	assert(in_doubt[a[i]] == 0);                                    /* never consumed twice */
	assert(a[i] > last[MAKER(a[i])]);                               /* in order per producer */
	last[MAKER(a[i])] = a[i];
	in_doubt[a[i]] = 1 + me
}

inline note_delivered(i) {
	delivered[a[i]]++;
	assert(delivered[a[i]] == 1);
	a[i] = 0
}

proctype consumer(byte me) {
	byte amount, first;
	byte a[2];
	bool owner_died;
	{
		do
		:: atomic {
			LOCKABLE(SECTION_C) && write_pos != read_pos ->
			take(SECTION_C);
			first = read_pos;
			amount = 1;
#ifdef BATCH
			if
			:: write_pos - read_pos > 1 -> amount = 2
			:: else
			fi
#endif
		   };
		   repair(SECTION_C);
#ifndef CONSUME_BEFORE_COPY
		   copy(0);
		   if
		   :: amount > 1 -> copy(1)
		   :: amount == 1
		   fi;
#endif
		   set_intent(SECTION_C, amount);
#ifdef CONSUME_BEFORE_COPY
		   atomic { read_pos = read_pos + amount };
		   copy(0);
		   atomic { note_consumed(0) };
#else
		   atomic {                                                     /* R2 consume */
			read_pos = read_pos + amount;
			assert(read_pos <= write_pos);
			note_consumed(0);
			if
			:: amount > 1 -> note_consumed(1)
			:: else
			fi
		   };
#endif
		   set_count(SECTION_C, amount);
		   atomic { owner[SECTION_C] = 0; owner_died = false };
		   atomic {
			note_delivered(0);
			if
			:: amount > 1 -> note_delivered(1)
			:: else
			fi;
			amount = 0;
			first = 0
		   }
		:: atomic { PRODUCERS_OUT && write_pos == read_pos -> done[me] = true; break }
		od
	} unless { gone[me] != RUNNING };
	atomic { amount = 0; first = 0; a[0] = 0; a[1] = 0; owner_died = false }
}

#define HELD_BY_LIVING(s) (owner[s] != 0 && gone[owner[s] - 1] != DEAD)

/* Takes each section once more when all is over, as the next caller would, and counts. */
proctype auditor() {
	byte id, doubts;
	bool owner_died;

	atomic {
		PRODUCERS_OUT && CONSUMERS_OUT -> over = true;
		if
		:: !HELD_BY_LIVING(SECTION_P) && !HELD_BY_LIVING(SECTION_C) ->
			owner_died = (owner[SECTION_P] != 0);
			repair(SECTION_P);
			owner_died = (owner[SECTION_C] != 0);
			repair(SECTION_C);
			assert(count[SECTION_P] == write_pos);
			assert(count[SECTION_C] == read_pos);
			assert(!intent[SECTION_P] && !intent[SECTION_C])
		:: else
		fi;
		assert(read_pos <= write_pos && write_pos - read_pos <= CAPACITY);
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
			:: returned[id] && in_doubt[id] == 0 ->
				assert((read_pos < write_pos && word0[read_pos % CAPACITY] == id) ||
				       (read_pos + 1 < write_pos && word0[(read_pos + 1) % CAPACITY] == id))
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
