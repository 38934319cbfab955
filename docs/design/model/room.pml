/* room.pml -- nobody waits for a descriptor while there is room for what it wants to put.
 *
 * NL lines want to put one record each, of NEED0 and NEED1 units; they are loops in one process,
 * as far as one could arm the other's listener. NC consumers take GETS units each out of a ring of
 * CAPACITY that is full at first. What a line waits for is that read_pos moves.
 *
 *   put      a glance at read_pos; an attempt; where it finds no room, the pipe is drained; then in
 *            section C: if read_pos is still what the glance saw, W2 arm, then the mark; else a byte
 *            for oneself; select
 *   take     in section C: R2 consume, then P5 look at the mark. If it is set, in section C again:
 *            W3 call: none is armed any more; then the mark is cleared. W4 write: a byte for each
 *
 * The timer of a descriptor rings when nothing at all can move, once for each death or stop.
 */
#define N (NL + NC)
#include "common.pml"

byte write_pos = CAPACITY, read_pos;
bool mark;
bool armed[NL];
bool readable[NL];
bool rings[NL];
bool asleep[NL];
byte rounds;

#define NEED(l) ((l) == 0 -> NEED0 : NEED1)
#define FITS(l) (write_pos - read_pos + NEED(l) <= CAPACITY)

inline enter() {
	atomic { LOCKABLE(SECTION_C) -> take(SECTION_C); owner_died = false }
}

inline quit() {
	atomic { owner[SECTION_C] = 0 }
}

proctype consumer(byte me) {
	bool owner_died, marked;
	bool called[NL];
	byte i, taken;
	{
		do
		:: taken < GETS && read_pos < write_pos ->
#ifdef LOOK_OUTSIDE
			atomic { marked = mark };
#endif
			enter();
			if
			:: atomic { read_pos < write_pos -> read_pos++; taken++ }       /* R2 consume */
			:: atomic { read_pos == write_pos -> taken = GETS }
			fi;
#ifndef LOOK_OUTSIDE
			atomic { marked = mark };                                       /* P5 look */
#endif
			quit();
			if
			:: marked ->
				enter();
				atomic {                                                /* W3 call */
					do
					:: i < NL -> called[i] = armed[i]; armed[i] = false; i++
					:: else -> i = 0; break
					od
				};
#ifdef UNMARK_OUTSIDE
				quit();
				atomic { mark = false };
#else
				atomic { mark = false };
				quit();
#endif
				marked = false;
				do
				:: atomic { i < NL && called[i] -> readable[i] = true; called[i] = false; i++ } /* W4 write */
				:: atomic { i < NL && !called[i] -> i++ }
				:: atomic { i == NL -> i = 0; break }
				od
			:: !marked
			fi
		:: taken == GETS || read_pos == write_pos -> break
		od;
		atomic { done[me] = true }
	} unless { gone[me] != RUNNING };
	atomic {
		owner_died = false; marked = false; taken = 0; i = 0;
		do
		:: i < NL -> called[i] = false; i++
		:: else -> i = 0; break
		od
	}
}

/* Drain the pipe of a line, and arm it by what was seen. */
inline arm(l) {
	atomic { readable[l] = false; rings[l] = false };
	enter();
	if
	:: atomic {
		read_pos == seen ->
		armed[l] = true                                                         /* W2 arm */
	   };
	   atomic { mark = true };
	   quit()
	:: atomic { read_pos != seen -> owner[SECTION_C] = 0; readable[l] = true }
	fi
}

proctype line(byte me; byte mine) {
	bool owner_died;
	byte seen;
	{
		do
		:: true ->
#ifndef GLANCE_AFTER
			atomic { seen = read_pos };
#endif
			if
			:: atomic { FITS(mine) -> write_pos = write_pos + NEED(mine); break }
			:: atomic { !FITS(mine) -> skip }
			fi;
#ifdef GLANCE_AFTER
			atomic { seen = read_pos };
#endif
			arm(mine);
#ifdef ARM_OTHERS
			if
			:: NL == 2 -> arm((1 - mine) % NL)
			:: else
			fi;
#endif
			atomic { seen = 0; asleep[mine] = true };
			if
			:: atomic { readable[mine] || rings[mine] -> asleep[mine] = false }
			:: over -> break
			fi
		od;
		atomic { done[me] = true }
	} unless { gone[me] != RUNNING };
	atomic { owner_died = false; seen = 0; asleep[mine] = false }
}

#define OUT(p) ((p) >= N || gone[(p) % N] != RUNNING || done[(p) % N])
#define WAITS(l) ((l) < NL && gone[(l) % N] == RUNNING && asleep[(l) % NL])
#define QUIET(l) ((l) >= NL || OUT(l) || (WAITS(l) && !readable[(l) % NL] && !rings[(l) % NL]))
#define REST (QUIET(0) && QUIET(1) && (NL >= N || OUT(NL)) && (NL + 1 >= N || OUT(NL + 1)))

proctype monitor() {
	byte i;
	do
	:: atomic {
		REST ->
		if
		:: (WAITS(0) && FITS(0)) || (WAITS(1) && FITS(1)) ->
#ifdef NO_TIMER
			assert(false);
#endif
			assert(rounds < deaths + stops);
			rounds++;
			do
			:: i < NL -> rings[i] = true; i++
			:: else -> i = 0; break
			od
		:: else -> over = true; break
		fi
	   }
	od
}

init {
	atomic {
		byte i = 0;
		do
		:: i < NL -> run line(i, i); i++
		:: i >= NL && i < N -> run consumer(i); i++
		:: else -> break
		od;
		i = 0;
		run reaper();
		run monitor()
	}
}
