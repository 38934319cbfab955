/* producers.pml -- attached producers: the ring is closed when the last has left or died.
 *
 * NP producers attach and leave, once each, as they come. Each has a small block: PRODUCER, then
 * LEAVING, then free. NS sweepers leave in the place of the dead; they may die themselves. The
 * whole of E1 is here the store of `closed`; close.pml has the rest.
 *
 *   attach   N1 attach: the block is a PRODUCER; then in section P: is the ring closed? If so, the
 *            block is freed, and the producer is refused
 *   leave    in section P: N2 leave: the block is LEAVING; then the PRODUCERs are counted; where
 *            none is left, E1 end. Then the block is freed
 *   sweep    for each block of the dead, PRODUCER or LEAVING: leave
 */
#define N (NP + NS)
#include "common.pml"

#define PRODUCER 1
#define LEAVING  2

byte kind[NP];                  /* of each one's block; 0 = free */
bool closed;
bool swept[NP];

/* The truth, kept by nobody in the real thing. */
bool attached[NP];              /* attach has returned, and leave was not called */
bool came;                      /* somebody was counted once */

#define IS(p, k) ((p) < NP && kind[(p) % NP] == (k))
#define PRODUCERS_BUT(p) \
	((0 != (p) && IS(0, PRODUCER)) || (1 != (p) && IS(1, PRODUCER)) || \
	 (2 != (p) && IS(2, PRODUCER)))
#define HOLDS_OPEN(p) ((p) < NP && attached[(p) % NP] && gone[(p) % N] != DEAD)

inline end_it() {                                                       /* E1 end */
	assert(closed || !(HOLDS_OPEN(0) || HOLDS_OPEN(1) || HOLDS_OPEN(2)));
	closed = true
}

inline enter() {
	atomic { LOCKABLE(SECTION_P) -> take(SECTION_P); owner_died = false }
}

inline quit() {
	atomic { owner[SECTION_P] = 0 }
}

/* N2 leave, for oneself or for one who died. */
inline leave(p) {
#if defined(NO_LEAVING)
	enter();
	atomic { last = !PRODUCERS_BUT(p) };
#elif defined(COUNT_BEFORE_MARK)
	enter();
	atomic { last = !PRODUCERS_BUT(p) };
	quit();
	enter();
	atomic { kind[p] = LEAVING };
#elif defined(FREE_BEFORE_COUNT)
	enter();
	atomic { kind[p] = 0 };
	atomic { last = !PRODUCERS_BUT(p) };
#else
	enter();
	if
	:: atomic { kind[p] != 0 -> kind[p] = LEAVING };                /* N2 leave */
	   atomic { last = !PRODUCERS_BUT(p) }
	:: kind[p] == 0                                 /* another sweep was faster */
	fi;
#endif
#ifdef CLOSE_AFTER_SECTION
	quit();
	enter();
#endif
	if
	:: atomic { last -> end_it(); last = false }
	:: !last
	fi;
	quit();
	atomic { kind[p] = 0 }
}

proctype producer(byte me) {
	bool owner_died, last;
	{
#ifdef LOOK_BEFORE_ATTACH
		enter();
		atomic { last = closed };
		quit();
		atomic { kind[me] = PRODUCER; came = true };                    /* N1 attach */
		if
		:: atomic { !last -> attached[me] = true };
#else
		atomic { kind[me] = PRODUCER; came = true };                    /* N1 attach */
		enter();
		if
		:: atomic { !closed -> attached[me] = true; owner[SECTION_P] = 0 };
#endif
		   atomic { attached[me] = false };
		   leave(me)
#ifdef LOOK_BEFORE_ATTACH
		:: atomic { last -> kind[me] = 0; last = false }
#else
		:: atomic { closed -> owner[SECTION_P] = 0 };
		   atomic { kind[me] = 0 }
#endif
		fi;
		atomic { done[me] = true }
	} unless { gone[me] != RUNNING };
	atomic { owner_died = false; last = false }
}

#define DUE(p) ((p) < NP && gone[(p) % N] == DEAD && !swept[(p) % NP])
#define ANY_DUE (DUE(0) || DUE(1) || DUE(2))
#define NOT_BUSY(p) ((p) >= N || gone[(p) % N] != RUNNING || done[(p) % N])
#define PRODUCERS_OUT \
	((0 >= NP || NOT_BUSY(0)) && (1 >= NP || NOT_BUSY(1)) && (2 >= NP || NOT_BUSY(2)))
#define SWEEPERS_OUT (NOT_BUSY(NP) && (NS < 2 || NOT_BUSY(NP + 1)))

proctype sweeper(byte me) {
	byte slot;
	bool owner_died, last;
	{
		do
		:: atomic {
			if
			:: DUE(0) -> slot = 0
			:: DUE(1) -> slot = 1
			:: DUE(2) -> slot = 2
			fi
		   };
		   if
		   :: kind[slot] != 0 -> leave(slot)
		   :: kind[slot] == 0
		   fi;
		   atomic { swept[slot] = true; slot = 0 }
		:: atomic { PRODUCERS_OUT && !ANY_DUE -> done[me] = true; break }
		:: atomic { STUCK(SECTION_P) -> gone[me] = EXCUSED; false }
		od
	} unless { gone[me] != RUNNING };
	atomic { slot = 0; owner_died = false; last = false }
}

#define STOPPED_IN(p) ((p) < NP && gone[(p) % N] >= STOPPED)

/* All is over: the ring is closed, unless one who was stopped is still attached, or a sweep is
 * still due. */
proctype auditor() {
	atomic {
		PRODUCERS_OUT && SWEEPERS_OUT -> over = true;
		assert(closed || !came || ANY_DUE || STOPPED_IN(0) || STOPPED_IN(1) || STOPPED_IN(2));
		assert(!closed || !(HOLDS_OPEN(0) || HOLDS_OPEN(1) || HOLDS_OPEN(2)))
	}
}

init {
	atomic {
		byte i = 0;
		do
		:: i < NP -> run producer(i); i++
		:: i >= NP && i < N -> run sweeper(i); i++
		:: else -> break
		od;
		i = 0;
		run reaper();
		run auditor()
	}
}
