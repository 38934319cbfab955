/* close.pml -- how a ring ends.
 *
 * NP producers are attached, put PUTS records each and leave. NC consumers get up to GETS records
 * each, or until they are told that the ring has ended. With CLOSER one more process closes the
 * ring at some moment. The last attached producer that leaves, or dies, closes it as well.
 * producers.pml has how they attach.
 */
#define TSO
#define WITH_END
#ifdef CLOSER
#define N (NP + NC + 1)
#else
#define N (NP + NC)
#endif
#include "common.pml"

/* The end as the monitor sees it: the attached who died count as gone. */
#define HOLDS_OPEN(p) ((p) < NP && (present & (1 << (p))) != 0 && gone[(p) % N] != DEAD)
#define END_DUE (closed || !(HOLDS_OPEN(0) || HOLDS_OPEN(1)))

inline final_checks() {
	skip
}

#include "parking.pml"

proctype closer(byte me) {
	LOCALS;
	{
#ifdef CLOSE_OUTSIDE_P
		atomic { push(CLOSE) };
#else
		atomic {
			LOCKABLE(SECTION_P) -> take(SECTION_P);
			CUT
			push(CLOSE);                                    /* E1 end */
			CUT
#if defined(SECTION_PARK) && defined(CLOSE_LOOKS_IN_P)
			looked = SLEEPERS(CONSUMERS) || SLEEPERS(PRODUCERS);
#else
			LOOK_INSIDE(CONSUMERS)
#endif
			push(UNLOCK(SECTION_P))
		};
#endif
		wake_behind_fence(CONSUMERS);
#ifdef CLOSE_LOOKS_IN_P
		atomic { push(END) };
		wake_behind_fence(PRODUCERS);
#else
		end_for_producers();
#endif
		finish()
	} unless { gone[me] != RUNNING };
	atomic { forget() }
}

proctype producer(byte me) {
	LOCALS;
	{
		wanted = PUTS;
		do
		:: put()
		:: wanted == 0 -> break
		od;
		leave_ring(me);
		finish()
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

init {
	atomic {
		early = EARLY;
		leaving = LEAVING;
		attached = (1 << NP) - 1;
		present = attached;
		byte i = 0;
		do
		:: i < NP -> run producer(i); i++
		:: i >= NP && i < NP + NC -> run consumer(i); i++
		:: i >= NP + NC && i < N ->
#ifdef CLOSER
			run closer(i);
#endif
			i++
		:: else -> break
		od;
		i = 0;
		run memory();
		run reaper();
		run monitor()
	}
}
