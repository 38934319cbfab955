/* close.pml -- how a ring ends.
 *
 * NP producers are attached, put PUTS records each and detach. NC consumers get up to GETS records
 * each, or until they are told that the ring has ended. With CLOSER one more process closes the
 * ring at some moment. The ring has ended when it is closed, or when nobody is attached.
 * `attached` is one bit a producer, so that it can be cleared twice; that the ring has ended is
 * derived from it, so that there is no second store to lose.
 */
#define TSO
#define WITH_END
#ifdef CLOSER
#define N (NP + NC + 1)
#else
#define N (NP + NC)
#endif
#include "common.pml"

/* The end as the monitor sees it: the attached who died count as detached. */
#define HOLDS_OPEN(p) ((p) < NP && (attached & (1 << (p))) != 0 && gone[(p) % N] != DEAD)
#define END_DUE (closed || !(HOLDS_OPEN(0) || HOLDS_OPEN(1)))

inline final_checks() {
	skip
}

#include "parking.pml"

/* Look at both places after a store in section P. With SECTION_PARK the producers' place belongs
 * to section C, so it takes an empty turn there. */
inline wake_everyone() {
	wake_behind_fence(CONSUMERS);
#ifdef SECTION_PARK
#ifndef CLOSE_LOOKS_IN_P
	atomic {
		LOCKABLE(SECTION_C) -> take(SECTION_C);
		CUT
		looked = SLEEPERS(PRODUCERS);
		push(UNLOCK(SECTION_C))
	};
#endif
#endif
#ifndef CLOSE_WAKES_CONSUMERS_ONLY
	wake_behind_fence(PRODUCERS)
#endif
}

proctype closer(byte me) {
	LOCALS;
	{
#ifdef CLOSE_OUTSIDE_P
		atomic { push(CLOSE) };
#else
		atomic {
			LOCKABLE(SECTION_P) -> take(SECTION_P);
			CUT
			push(CLOSE);                                    /* C1 close */
			CUT
#if defined(SECTION_PARK) && defined(CLOSE_LOOKS_IN_P)
			looked = SLEEPERS(CONSUMERS) || SLEEPERS(PRODUCERS);
#else
			LOOK_INSIDE(CONSUMERS)
#endif
			push(UNLOCK(SECTION_P))
		};
#endif
		wake_everyone();
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
		atomic {
			LOCKABLE(SECTION_P) -> take(SECTION_P);
			CUT
			push(DETACH(me));                               /* C2 detach */
			CLOSE_IF_LAST(me)
			CUT
			LOOK_INSIDE(CONSUMERS)
			push(UNLOCK(SECTION_P))
		};
#ifndef NO_DETACH_POST
		wake_behind_fence(CONSUMERS);
#endif
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
