/* park.pml -- nobody sleeps while there is work for it.
 *
 * PRODUCERS_N producers put PUTS records each, CONSUMERS_N consumers get GETS records each and
 * then go away for good: a process that will never call again must not take a wake-up with it.
 * FILLED records are in the ring at the start.
 */
#define TSO
#ifdef REDELIVERY
#define LISTERS 1
#else
#define LISTERS 0
#endif
#define N (NP + NC + LISTERS)
#include "common.pml"
#define END_DUE false
#define NO_ATTACHED
inline final_checks() {
	if
	:: deaths + stops == 0 && leaving == LEAVING && FILLED + NP * PUTS + LISTERS == NC * GETS ->
		assert(read_pos == FILLED + NP * PUTS && listed == 0)
	:: else
	fi
}

#include "parking.pml"

proctype producer(byte me) {
	LOCALS;
	{
		wanted = PUTS;
		do
		:: put()
		:: finish() -> break
		od
	} unless { gone[me] != RUNNING };
	atomic { forget() }
}

proctype consumer(byte me) {
	LOCALS;
	{
		wanted = GETS;
		do
		:: get()
		:: finish() -> break
		od
	} unless { gone[me] != RUNNING };
	atomic { forget() }
}

/* A sweeper that has found one record to return. It looks for sleepers in section C, although
 * with SECTION_PARK their number is guarded by section P; and a consumer that goes to sleep does
 * not look for RETURNED blocks again. So a returned record may be late by one slice. */
proctype lister(byte me) {
	LOCALS;
	{
		atomic {
			LOCKABLE(SECTION_C) -> take(SECTION_C);
			CUT
			push(LIST);                                     /* L1 return */
			seen_write_pos = read_pos;
			returns++;
			CUT
			LOOK_INSIDE(CONSUMERS)
			push(UNLOCK(SECTION_C))
		};
		wake_behind_fence(CONSUMERS);
		finish()
	} unless { gone[me] != RUNNING };
	atomic { forget() }
}

init {
	atomic {
		write_pos = FILLED;
		seen_write_pos = FILLED;
		early = EARLY;
		leaving = LEAVING;
		byte i = 0;
		do
		:: i < NP -> run producer(i); i++
		:: i >= NP && i < NP + NC -> run consumer(i); i++
		:: i >= NP + NC && i < N -> run lister(i); i++
		:: else -> break
		od;
		i = 0;
		run memory();
		run reaper();
		run monitor()
	}
}
