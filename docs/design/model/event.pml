/* event.pml -- who awaits an event goes on when it is set, though it is cleared at once.
 *
 * NS setters set it SETS times each; with PULSE they clear it at once. NL lines wait once each, by
 * a descriptor.
 *
 *   set      E1 set, without a section; then in section P: P5 look at the mark. If it is not set,
 *            `calls` is one more. If it is, in section P again: W3 call: none is armed any more, by one
 *            store of `calls`; then the mark is cleared. W4 write: a byte for each that was armed
 *   wait     a glance at `calls`; then: if the event is set, or `calls` is not what it was, go on;
 *            the pipe is drained; in section P: if it is not set, W2 arm, then the mark; else a byte
 *            for oneself; a glance at `calls` once more; select; and again
 *
 * The timer of a descriptor rings when nothing at all can move, once for each death or stop; with
 * CLOCK also once at any moment, as it does whenever a second is over.
 */
#define N (NS + NL)
#include "common.pml"

bool flag;
bool mark;
byte calls;
byte armed[NL];                 /* the number of the call to come, 0 = never armed */
bool readable[NL];
bool rings[NL];
bool asleep[NL];
bool there[NL];                 /* it has come; kept by nobody in the real thing, as is due */
bool due[NL];                   /* a set has looked since: it has to go on */
byte rounds;

inline enter() {
	atomic { LOCKABLE(SECTION_P) -> take(SECTION_P); owner_died = false }
}

inline quit() {
	atomic { owner[SECTION_P] = 0 }
}

proctype setter(byte me) {
	bool owner_died, marked;
	bool called[NL];
	byte i, set;
	{
		do
		:: set < SETS ->
			atomic { flag = true; set++ };                                  /* E1 set */
#ifdef LOOK_OUTSIDE
			atomic { marked = mark };
			enter();
#else
			enter();
			atomic { marked = mark };                                       /* P5 look */
#endif
			atomic {
#ifndef COUNT_CALLS_ALONE
				if
				:: !marked -> calls++
				:: else
				fi;
#endif
				do
				:: i < NL -> due[i] = due[i] || there[i]; i++
				:: else -> i = 0; break
				od
			};
			quit();
			if
			:: marked ->
				enter();
				atomic {                                                /* W3 call */
					calls++;
					do
					:: i < NL -> called[i] = (armed[i] == calls); i++
					:: else -> i = 0; break
					od
				};
				atomic { mark = false };
				quit();
				marked = false;
				do
				:: atomic { i < NL && called[i] -> readable[i] = true; called[i] = false; i++ } /* W4 write */
				:: atomic { i < NL && !called[i] -> i++ }
				:: atomic { i == NL -> i = 0; break }
				od
			:: !marked
			fi;
#ifdef PULSE
			atomic { flag = false }
#endif
		:: set == SETS -> break
		od;
		atomic { done[me] = true }
	} unless { gone[me] != RUNNING };
	atomic {
		owner_died = false; marked = false; set = 0; i = 0;
		do
		:: i < NL -> called[i] = false; i++
		:: else -> i = 0; break
		od
	}
}

#ifdef FLAG_ONLY
#define CALLED false
#else
#define CALLED (calls != came_at)
#endif
#define GOES (flag || CALLED)

proctype line(byte me; byte mine) {
	bool owner_died;
	byte came_at;
	{
		atomic { came_at = calls; there[mine] = true };
		do
		:: atomic { GOES -> due[mine] = false; break }
		:: atomic { !GOES -> skip };
			atomic { readable[mine] = false; rings[mine] = false };
			enter();
			if
			:: atomic { !flag -> armed[mine] = calls + 1 };                       /* W2 arm */
			   atomic { mark = true };
			   quit()
			:: atomic { flag -> owner[SECTION_P] = 0; readable[mine] = true }
			fi;
#ifdef COUNT_ANEW
			atomic { came_at = calls };
#endif
#ifndef NO_GLANCE_AFTER
			if
			:: atomic { CALLED -> due[mine] = false; break }
			:: atomic { !CALLED -> skip }
			fi;
#endif
			atomic { asleep[mine] = true };
			if
			:: atomic { readable[mine] || rings[mine] -> asleep[mine] = false }
			:: over -> break
			fi
		od;
		atomic { done[me] = true }
	} unless { gone[me] != RUNNING };
	atomic { owner_died = false; came_at = 0; asleep[mine] = false }
}

#ifdef CLOCK
proctype clock() {
	atomic { rings[0] = true }
}
#endif

#define OUT(p) ((p) >= N || gone[(p) % N] != RUNNING || done[(p) % N])
#define WAITS(l) ((l) < NL && gone[(NS + (l)) % N] == RUNNING && asleep[(l) % NL])
#define QUIET(l) ((l) >= NL || OUT(NS + (l)) || (WAITS(l) && !readable[(l) % NL] && !rings[(l) % NL]))
#define REST ((0 >= NS || OUT(0)) && (1 >= NS || OUT(1)) && QUIET(0) && QUIET(1))
/* A set that was killed before it called, and whose flag another has cleared, is nobody's. */
#define DUE(l) (WAITS(l) && (flag || (due[(l) % NL] && deaths + stops == 0)))

proctype monitor() {
	byte i;
	do
	:: atomic {
		REST ->
		if
		:: DUE(0) || DUE(1) ->
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
		:: i < NS -> run setter(i); i++
		:: i >= NS && i < N -> run line(i, i - NS); i++
		:: else -> break
		od;
		i = 0;
#ifdef CLOCK
		run clock();
#endif
		run reaper();
		run monitor()
	}
}
