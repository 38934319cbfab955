/* common.pml -- what every model of ipcmap's protocol shares: processes that die, sections,
 * semaphores, and (with TSO) a store buffer in front of the shared words.
 *
 * Processes are numbered 0 .. N-1. gone[] is the truth about each, done[] says that it has
 * nothing more to do. Every process wraps its body in `unless (gone[me])`, so that it can be cut
 * off before any step. Steps that only it can see are folded into the neighbouring shared step.
 *
 * What dies, and how
 *   DEAD     killed. Its stores still reach memory. Then the kernel hands on its sections.
 *   STOPPED  takes no further step, but lives: its sections stay taken.
 *   EXCUSED  waits for a section whose owner is STOPPED. Legal, and as good as stopped.
 */

#define RUNNING 0
#define DEAD    1
#define STOPPED 2
#define EXCUSED 3

#ifndef MAX_DEATHS
#define MAX_DEATHS 0
#endif
#ifndef MAX_STOPS
#define MAX_STOPS 0
#endif

#define SECTION_P 0     /* guards what producers change */
#define SECTION_C 1     /* guards what consumers change */

byte gone[N];
bool done[N];
byte deaths;
byte stops;
bool over;              /* the monitor has given its verdict */

byte owner[2];          /* of each section: 0 free, else 1 + process */

/* The store buffer: first in, first out, one entry a store. buffer0 is the oldest entry.
 * Without TSO nothing is ever buffered, and the words stay empty. */
#ifdef TSO
byte buffer0[N];
byte buffer1[N];
byte buffer2[N];
#define DRAINED(p) (buffer0[p] == 0)
#else
#define DRAINED(p) true
#endif

/* The kernel marks a robust mutex after the last store of the dead has reached memory. */
#ifdef NOT_ROBUST
#define INHERITED(s) false
#else
#define INHERITED(s) (owner[s] != 0 && gone[owner[s] - 1] == DEAD && DRAINED(owner[s] - 1))
#endif
#define STUCK(s) (owner[s] != 0 && gone[owner[s] - 1] >= STOPPED && DRAINED(owner[s] - 1))

/* Take a section: `atomic { LOCKABLE(s) -> take(s); ... }`. Sets owner_died to what EOWNERDEAD
 * would say. Nobody repairs anything then; a lease that was broken off is found by its record. */
#ifdef UNGUARDED
#define LOCKABLE(s) DRAINED(me)
#else
#define LOCKABLE(s) (DRAINED(me) && (owner[s] == 0 || INHERITED(s) || STUCK(s)))
#endif

inline take(s) {
	if
	:: STUCK(s) -> gone[me] = EXCUSED; false        /* the escape takes over here */
	:: else -> owner_died = (owner[s] != 0); owner[s] = me + 1
	fi
}

/* CUT ends one step and begins the next, so that a process can die in between. Where nobody dies,
 * the steps on either side of it are one: what follows is seen by nobody until it drains. */
#if MAX_DEATHS + MAX_STOPS > 0
#define CUT }; atomic {
#else
#define CUT
#endif

/* Kills and stops: at any step, of anyone that the model calls MORTAL. */
#ifndef MORTAL
#define MORTAL(p) true
#endif

#define CAN_STRIKE(p) \
	(!over && (deaths < MAX_DEATHS || stops < MAX_STOPS) && \
	 (p) < N && gone[(p) % N] == RUNNING && !done[(p) % N] && MORTAL((p) % N))

inline strike(p) {
	if
	:: deaths < MAX_DEATHS -> deaths++; gone[p] = DEAD
	:: stops < MAX_STOPS -> stops++; gone[p] = STOPPED
	fi
}

proctype reaper() {
end_reaper:
	do
	:: atomic { CAN_STRIKE(0) -> strike(0) }
	:: atomic { CAN_STRIKE(1) -> strike(1 % N) }
	:: atomic { CAN_STRIKE(2) -> strike(2 % N) }
	:: atomic { CAN_STRIKE(3) -> strike(3 % N) }
	:: atomic { CAN_STRIKE(4) -> strike(4 % N) }
	:: atomic { CAN_STRIKE(5) -> strike(5 % N) }
	od
}
