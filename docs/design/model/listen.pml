/* listen.pml -- nobody waits in select while there is work for it.
 *
 * NP producers put PUTS records each; with CLOSES the first then closes the ring. NL listeners
 * wait for their descriptors and take what is there; LAZY of them may go away for good instead of
 * looking, with their descriptor readable.
 *
 *   put      in section P: R1 publish, then P5 look at the mark. If it is set, in section P again,
 *            and if there is still something: W3 call: none is armed any more, by one store; then
 *            the mark is cleared. W4 write: a byte for each that was armed
 *   listen   select; get; where a get finds nothing, the pipe is drained; then in section P: if
 *            nothing was published since, W2 arm, then the mark; else a byte for oneself
 *
 * A get is one step, and the sleepers of park.pml are not here: a put wakes them besides. The timer
 * of a descriptor rings when nothing at all can move, once for each death or stop, and no more.
 *
 * EXACT: the descriptor of a queue's end, which has one listener. It is never readable in vain:
 * W4 is in the section of W3, and the pipe is drained in that of W2. OTHERS times its wait ends
 * because of another descriptor.
 */
#ifndef LAZY
#define LAZY 0
#endif
#define N (NP + NL)
#include "common.pml"

byte write_pos, read_pos;
bool closed;
bool mark;                      /* LISTENING, in the word of the sleepers */
bool armed[NL];
bool readable[NL];              /* a byte is in the pipe */
bool rings[NL];                 /* the timer */
bool asleep[NL];                /* in select; kept by nobody in the real thing */
byte lazy;
byte rounds;

inline enter() {
	atomic { LOCKABLE(SECTION_P) -> take(SECTION_P); owner_died = false }
}

inline quit() {
	atomic { owner[SECTION_P] = 0 }
}

#define WORK (read_pos < write_pos || closed)

#ifdef EXACT
#ifndef WRITE_OUTSIDE
#define WRITES_INSIDE
#endif
#ifndef DRAIN_OUTSIDE
#define DRAINS_INSIDE
#endif
#endif

#ifdef CALL_IN_VAIN
#define VAIN false
#else
#define VAIN (!WORK)
#endif

/* W4, in the section of W3 or after it. */
inline write() {
	atomic { i = 0 };
	do
	:: atomic { i < NL && called[i] -> readable[i] = true; called[i] = false; i++ } /* W4 write */
	:: atomic { i < NL && !called[i] -> i++ }
	:: atomic { i == NL -> i = 0; break }
	od
}

/* W3 and W4, if the mark was seen. */
inline call() {
	if
	:: marked ->
		enter();
		if
		:: atomic { VAIN -> marked = false }; quit()
		:: atomic { !VAIN -> marked = false };
			atomic {                                                /* W3 call */
				i = 0;
				do
				:: i < NL ->
					called[i] = armed[i];
					armed[i] = false;
#ifdef CALL_ONE
					if
					:: called[i] -> i++; break
					:: else
					fi;
#endif
					i++
				:: else -> break
				od;
#ifdef CALL_ONE
				j = i
#endif
			};
#ifdef UNMARK_OUTSIDE
			quit();
			atomic { mark = false };
#else
#ifdef CALL_ONE
			atomic {
				mark = false;
				do
				:: j < NL -> mark = mark || armed[j]; j++
				:: else -> j = 0; break
				od
			};
#else
			atomic { mark = false };
#endif
#ifdef WRITES_INSIDE
			write();
#endif
			quit();
#endif
#ifndef WRITES_INSIDE
			write()
#endif
		fi
	:: !marked
	fi
}

proctype producer(byte me) {
	bool owner_died, marked;
	bool called[NL];
	byte i, j, put;
	{
		do
		:: put < PUTS && !closed ->
#ifdef LOOK_OUTSIDE
			atomic { marked = mark };
#endif
			enter();
			if
			:: atomic { !closed -> write_pos++; put++ }             /* R1 publish */
			:: atomic { closed -> put = PUTS }
			fi;
#ifndef LOOK_OUTSIDE
			atomic { marked = mark };                               /* P5 look */
#endif
			quit();
			call()
		:: put == PUTS || closed -> break
		od;
#ifdef CLOSES
		if
		:: me == 0 ->
			enter();
			atomic { closed = true };                               /* E1 end */
			atomic { marked = mark };                               /* P5 look */
			quit();
			call()
		:: else
		fi;
#endif
		atomic { done[me] = true }
	} unless { gone[me] != RUNNING };
	atomic {
		owner_died = false; marked = false; put = 0; j = 0; i = 0;
		do
		:: i < NL -> called[i] = false; i++
		:: else -> i = 0; break
		od
	}
}

#ifdef NO_RECHECK
#define MOVED false
#else
#ifdef NO_RECHECK_OF_END
#define MOVED (write_pos != seen)
#else
#define MOVED (write_pos != seen || closed)
#endif
#endif

proctype listener(byte me; byte mine) {
	bool owner_died, moved;
	byte seen, others;
	{
		do
		:: atomic { read_pos < write_pos -> read_pos++ }
		:: atomic { read_pos == write_pos && closed -> break }
		:: atomic { read_pos == write_pos && !closed -> seen = write_pos };
#ifndef DRAIN_LAST
			atomic { readable[mine] = false; rings[mine] = false };
#endif
#ifdef RECHECK_OUTSIDE
			atomic { moved = MOVED };
			enter();
#else
			enter();
#ifdef DRAINS_INSIDE
			atomic { readable[mine] = false };
#endif
			atomic { moved = MOVED };
#endif
			if
			:: atomic { !moved -> armed[mine] = true };             /* W2 arm */
			   atomic { mark = true };
			   quit()
			:: moved -> quit();
			   atomic { readable[mine] = true }
			fi;
#ifdef DRAIN_LAST
			atomic { readable[mine] = false; rings[mine] = false };
#endif
			atomic { moved = false; seen = 0; asleep[mine] = true };
			if
			:: atomic {
				readable[mine] || rings[mine] ->
#ifdef EXACT
				assert(rings[mine] || WORK);    /* or its get waits, deaf to all else */
#endif
				asleep[mine] = false
			   };
			   if
			   :: atomic { lazy < LAZY -> lazy++; break }
			   :: true
			   fi
#ifdef EXACT
			:: atomic { others < OTHERS -> others++; asleep[mine] = false }
#endif
			:: over -> break
			fi
		od;
		atomic { done[me] = true }
	} unless { gone[me] != RUNNING };
	atomic { owner_died = false; moved = false; seen = 0; others = 0; asleep[mine] = false }
}

#define OUT(p) ((p) >= N || gone[(p) % N] != RUNNING || done[(p) % N])
#define WAITS(l) ((l) < NL && gone[(NP + (l)) % N] == RUNNING && asleep[(l) % NL])
#define QUIET(l) (OUT(NP + (l)) || (WAITS(l) && !readable[(l) % NL] && !rings[(l) % NL]))
#define REST \
	((0 >= NP || OUT(0)) && (1 >= NP || OUT(1)) && (2 >= NP || OUT(2)) && \
	 QUIET(0) && QUIET(1) && QUIET(2))

/* Where nothing can move: nobody waits although there is work, or a timer has to ring, for which
 * somebody must have died or been stopped. */
proctype monitor() {
	byte i;
	do
	:: atomic {
		REST ->
		if
		:: WORK && (WAITS(0) || WAITS(1) || WAITS(2)) ->
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
		:: i < NP -> run producer(i); i++
		:: i >= NP && i < N -> run listener(i, i - NP); i++
		:: else -> break
		od;
		i = 0;
		run reaper();
		run monitor()
	}
}
