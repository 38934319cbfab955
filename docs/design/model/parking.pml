/* parking.pml -- put, get and the parking places, over a ring that is only two positions.
 * park.pml and close.pml include it.
 *
 * Shared words            written by                    guard
 *   write_pos             producers                     section P
 *   seen_read_pos         producers                     section P: a read_pos of some time ago
 *   closed                closer, last producer         section P
 *   read_pos              consumers                     section C
 *   seen_write_pos        consumers, sweepers           section C: a write_pos of some time ago
 *   ended                 closer, last producer         section C: closed, for the producers
 *   listed                sweepers, consumers           section C: how many blocks are RETURNED
 *   sleepers[place]       whoever sleeps there          none (atomic add); with SECTION_PARK the
 *                                                       section of the side that is waited for
 *   tokens[place]         the semaphore's value         none (atomic)
 *   attached, present     producers, sweepers           section P, one bit a producer: it is a
 *                                                       PRODUCER; it has a block, LEAVING perhaps
 *
 * Every store to a word that is read outside its section passes through the store buffer, and
 * so do the unlocks (as plain release stores) and the adds to sleepers[]. That is weaker than
 * x86, where an unlock and an atomic add are fences by themselves. So only the named fences
 * order a store before a later load, and the model shows where they are needed.
 *
 * Sync points: P1 announce, P2 recheck, P3 sleep, P4 woken, P5 look, P6 post,
 *              R1 publish, R2 consume, L1 return, L2 pop, E1 end, N2 leave.
 */

#define CONSUMERS 0     /* the place where consumers sleep */
#define PRODUCERS 1     /* the place where producers sleep */

byte write_pos;
byte read_pos;
byte sleepers[2];
byte tokens[2];

byte seen_write_pos;
byte seen_read_pos;
byte listed;
bool closed;
bool ended;
bool told;              /* the truth kept for the monitor: some consumer was told that it is over */
byte attached;
byte present;

byte asleep[N];         /* 0, or 1 + the place: it is inside the semaphore's wait */
bool expired[N];        /* its slice has run out */
byte early;             /* slices that may still run out at any moment */
byte leaving;           /* calls that may still end by timeout, signal or exception */
byte rounds;            /* slices that were needed to get on */
byte returns;           /* records that a sweep gave back: each may wait for one slice */

#ifdef TOKEN_FLAG
bool token_out[2];
#endif

/* Store buffer entries. */
#define PUBLISH         1
#define CONSUME         2
#define UNLOCK(s)       (3 + (s))
#define ANNOUNCE(place) (5 + (place))
#define RETIRE(place)   (7 + (place))
#define CLOSE           9
#define LIST            10
#define UNLIST          11
#define END             12
#define DETACH(p)       (13 + (p))
#define GONE(p)         (16 + (p))

inline push(entry) {
	if
	:: buffer0[me] == 0 -> buffer0[me] = entry
	:: else ->
		if
		:: buffer1[me] == 0 -> buffer1[me] = entry
		:: else -> assert(buffer2[me] == 0); buffer2[me] = entry
		fi
	fi
}

inline shift(p) {
	buffer0[p] = buffer1[p];
	buffer1[p] = buffer2[p];
	buffer2[p] = 0
}

inline drain(p) {
	if
	:: buffer0[p] == PUBLISH ->
		assert(!told);          /* nothing may be committed once a consumer was told the end */
		write_pos++; assert(write_pos - read_pos <= CAPACITY)
	:: buffer0[p] == CONSUME ->
		assert(read_pos < write_pos); read_pos++
	:: buffer0[p] == UNLOCK(SECTION_P) -> owner[SECTION_P] = 0
	:: buffer0[p] == UNLOCK(SECTION_C) -> owner[SECTION_C] = 0
	:: buffer0[p] == ANNOUNCE(CONSUMERS) -> sleepers[CONSUMERS]++
	:: buffer0[p] == ANNOUNCE(PRODUCERS) -> sleepers[PRODUCERS]++
	:: buffer0[p] == RETIRE(CONSUMERS) ->
		assert(sleepers[CONSUMERS] > 0); sleepers[CONSUMERS]--
	:: buffer0[p] == RETIRE(PRODUCERS) ->
		assert(sleepers[PRODUCERS] > 0); sleepers[PRODUCERS]--
	:: buffer0[p] == CLOSE -> closed = true
	:: buffer0[p] == LIST -> listed++
	:: buffer0[p] == UNLIST -> assert(listed > 0); listed--
	:: buffer0[p] == END -> ended = true
	:: buffer0[p] >= GONE(0) -> present = present & ~(1 << (buffer0[p] - GONE(0)))
	:: buffer0[p] >= DETACH(0) && buffer0[p] < GONE(0) ->
		attached = attached & ~(1 << (buffer0[p] - DETACH(0)))
	fi;
	shift(p);
	if      /* An unlock right behind a store: nobody can tell whether it comes a moment later. */
	:: buffer0[p] == UNLOCK(SECTION_P) -> owner[SECTION_P] = 0; shift(p)
	:: buffer0[p] == UNLOCK(SECTION_C) -> owner[SECTION_C] = 0; shift(p)
	:: else
	fi
}

/* Memory: stores arrive whenever they like, those of the dead included. */
#define BUFFERED(p) ((p) < N && buffer0[(p) % N] != 0)

proctype memory() {
end_memory:
	do
	:: d_step { BUFFERED(0) -> drain(0) }
	:: d_step { BUFFERED(1) -> drain(1 % N) }
	:: d_step { BUFFERED(2) -> drain(2 % N) }
	:: d_step { BUFFERED(3) -> drain(3 % N) }
	:: d_step { BUFFERED(4) -> drain(4 % N) }
	:: d_step { BUFFERED(5) -> drain(5 % N) }
	od
}

#define FENCE DRAINED(me)

#if defined(SECTION_PARK) || defined(NO_FENCE_POSTER)
#define POSTER_FENCE true
#else
#define POSTER_FENCE FENCE
#endif
#if defined(SECTION_PARK) || defined(NO_FENCE_SLEEPER)
#define SLEEPER_FENCE true
#else
#define SLEEPER_FENCE FENCE
#endif

/* Wake somebody at a place: two loads and a post. LOOK says whether anybody sleeps there; it is
 * evaluated once READY holds. Two posters may both find no token out, and both post. */
inline wake(READY, LOOK, place) {
	if
	:: READY && (LOOK) ->                                           /* P5 look */
#ifdef TOKEN_FLAG
	   if
	   :: atomic { !token_out[place] -> token_out[place] = true };
	      atomic { DRAINED(me) -> tokens[place]++ }
	   :: token_out[place]
	   fi
#else
	   if
	   :: tokens[place] == 0 ->
	      atomic { DRAINED(me) -> tokens[place]++ }                 /* P6 post */
	   :: tokens[place] > 0
	   fi
#endif
	:: READY && !(LOOK)
	fi
}

#define SLEEPERS(place) (sleepers[place] > 0)

/* The poster looks after its fence; with SECTION_PARK it has looked before it unlocked. */
#ifdef SECTION_PARK
#define LOOK_INSIDE(place) looked = SLEEPERS(place);
#define wake_behind_fence(place) wake(true, looked, place)
#else
#define LOOK_INSIDE(place)
#define wake_behind_fence(place) wake(POSTER_FENCE, SLEEPERS(place), place)
#endif

/* Wake one more of one's own side. No fence: the poster of what is left behind has seen the
 * sleepers, and found a token that is taken by now. */
#define wake_next(CONDITION, place) wake(true, (CONDITION) && SLEEPERS(place), place)

#ifdef PLAIN_ANNOUNCE
#define push_retire(place) sleepers[place] = (plain > 0 -> plain - 1 : 0); plain = 0
#else
#define push_retire(place) push(RETIRE(place))
#endif

/* With SECTION_PARK a waiter announces and rechecks in the section of the side it waits for. */
#ifdef OWN_SECTION
#define SIDE_OF_PRODUCERS SECTION_C
#define SIDE_OF_CONSUMERS SECTION_P
#else
#define SIDE_OF_PRODUCERS SECTION_P
#define SIDE_OF_CONSUMERS SECTION_C
#endif

/* What a look at the other side finds: its position, and whether the end has come. In its section
 * they are read together; with fences the end is read first. */
#ifdef WITH_END
#define READ_END(ENDED) atomic { over_there = (ENDED) };
#else
#define READ_END(ENDED)
#endif
#define READ_POSITION(POSITION) atomic { found = (POSITION) };
#if defined(POSITION_BEFORE_CLOSED)
#define NOTE_FOUND(POSITION, ENDED)
#define FIND(POSITION, ENDED) READ_POSITION(POSITION) READ_END(ENDED)
#elif defined(SECTION_PARK)
#define NOTE_FOUND(POSITION, ENDED) found = (POSITION); over_there = (ENDED);
#define FIND(POSITION, ENDED)
#else
#define NOTE_FOUND(POSITION, ENDED)
#define FIND(POSITION, ENDED) READ_END(ENDED) READ_POSITION(POSITION)
#endif

/* One wait, after an attempt that found the other side no farther than `seen`. Afterwards `found`
 * is where it was, `over_there` says whether the end was seen, `slept` whether a slice was spent.
 * SECTION is the other side's. */
inline park(place, SECTION, POSITION, ENDED) {
#ifdef SECTION_PARK
#define RECHECK(CONDITION) \
	LOCKABLE(SECTION) && (CONDITION) -> take(SECTION); push(ANNOUNCE(place)); CUT
#define RECHECKED push(UNLOCK(SECTION))
#else
#ifdef PLAIN_ANNOUNCE
	atomic { FENCE -> plain = sleepers[place] };
	atomic { sleepers[place] = plain + 1; plain = 0 };
#else
	atomic { push(ANNOUNCE(place)) };                               /* P1 announce */
#endif
#define RECHECK(CONDITION) SLEEPER_FENCE && (CONDITION) ->
#define RECHECKED
#endif
#ifdef NO_RECHECK
#define UNMOVED true
#else
#define UNMOVED ((POSITION) == seen && !(ENDED))
#endif
	if
#ifndef NO_RECHECK
	:: atomic { RECHECK(!UNMOVED) push_retire(place); NOTE_FOUND(POSITION, ENDED) RECHECKED }
#endif
	:: atomic { RECHECK(UNMOVED) asleep[me] = 1 + place; RECHECKED };       /* P2 recheck */
end_asleep:
	   if                                                           /* P3 sleep */
	   :: atomic {
		DRAINED(me) && tokens[place] > 0 ->                     /* P4 woken */
		tokens[place]--;
		asleep[me] = 0;
		expired[me] = false;
		slept = true
	      };
#ifdef TOKEN_FLAG
	      token_out[place] = false
#endif
	   :: atomic {
		expired[me] ->
		asleep[me] = 0;
		expired[me] = false;
		slept = true;
#ifdef SWEEP_RETIRES
		push(RETIRE(place))
#endif
	      };
	      sweep_attached()
#if EARLY > 0
	   :: atomic { early > 0 -> early--; asleep[me] = 0; slept = true }
#endif
	   fi;
#ifdef SECTION_PARK
	   atomic {
		LOCKABLE(SECTION) -> take(SECTION);
		push_retire(place);
		NOTE_FOUND(POSITION, ENDED)
		push(UNLOCK(SECTION))
	   }
#else
#ifdef PLAIN_ANNOUNCE
	   plain = sleepers[place];
#endif
	   atomic { push_retire(place) }
#endif
	fi;
	FIND(POSITION, ENDED)
#if LEAVING > 0
	if
	:: atomic { slept && leaving > 0 -> leaving--; wanted = 0; found = seen; over_there = false };
#ifndef LEAVE_WITH_TOKEN
	   wake_next(true, place)                       /* an exception: the token may be ours */
#endif
	:: atomic { found == seen && !over_there && leaving > 0 -> leaving--; wanted = 0 }
	:: true
	fi;
#endif
	skip
}

/* A waiter whose slice ran out looks for attached producers that have died. One that is LEAVING is
 * found as well, until its block is freed: whoever was to close the ring may have died first. */
#define UNSWEPT(p) ((p) < NP && gone[(p) % N] == DEAD && (present & (1 << (p))) != 0)

/* N2 leave: the mark, the count and the end in one section; then the end for the producers in
 * theirs; then the block is freed. */
inline leave_ring(p) {
#ifdef FREE_BEFORE_CLOSE
	atomic { push(GONE(p)) };
#endif
	atomic {
		LOCKABLE(SECTION_P) -> take(SECTION_P);
		CUT
		push(DETACH(p));                                        /* N2 leave */
		CUT
		last = ((attached & ~(1 << (p))) == 0);
		if
		:: last -> push(CLOSE)                                  /* E1 end */
		:: else
		fi;
		CUT
		LOOK_INSIDE(CONSUMERS)
		push(UNLOCK(SECTION_P))
	};
	if
	:: last ->
#ifndef NO_DETACH_POST
	   wake_behind_fence(CONSUMERS);
#endif
	   end_for_producers()
	:: !last
	fi;
	atomic { DRAINED(me) -> push(GONE(p)); last = false }
}

inline end_for_producers() {
	atomic {
		LOCKABLE(SECTION_C) -> take(SECTION_C);
		CUT
		push(END);                                              /* E1 end */
		CUT
		LOOK_INSIDE(PRODUCERS)
		push(UNLOCK(SECTION_C))
	};
#ifndef CLOSE_WAKES_CONSUMERS_ONLY
	wake_behind_fence(PRODUCERS)
#endif
}

inline sweep_one(p) {
	if
	:: UNSWEPT(p) -> leave_ring(p)
	:: !UNSWEPT(p)
	fi
}

inline sweep_attached() {
#if defined(NO_ATTACHED) || defined(NO_ATTACHED_SWEEP)
	skip
#else
	sweep_one(0);
	sweep_one(1)
#endif
}

/* Try once to put a record, and wait if there is no room. `wanted` counts the calls to be made. */
inline put() {
	if
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_P) && !closed && write_pos - seen_read_pos < CAPACITY ->
		take(SECTION_P);
		slept = false;
		CUT
		push(PUBLISH);                                          /* R1 publish */
		CUT
		LOOK_INSIDE(CONSUMERS)
		push(UNLOCK(SECTION_P));
		wanted--
	   };
	   wake_behind_fence(CONSUMERS)
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_P) && !closed && write_pos - seen_read_pos == CAPACITY ->
		take(SECTION_P);
		seen = seen_read_pos;
		slept = false;
		CUT
		push(UNLOCK(SECTION_P))
	   };
	   park(PRODUCERS, SIDE_OF_CONSUMERS, read_pos, ended);
	   if
	   :: found != seen ->
	      atomic {
		LOCKABLE(SECTION_P) -> take(SECTION_P);
		if
		:: seen_read_pos < found -> seen_read_pos = found
		:: else
		fi;
		seen = 0;
		found = 0;
		over_there = false;
		CUT
		push(UNLOCK(SECTION_P))
	      };
#ifndef NO_CHAIN_PRODUCERS
	      wake_next(slept, PRODUCERS)                       /* room was found: at once */
#endif
	   :: found == seen && over_there ->
#ifndef NO_CHAIN_END
	      wake_next(slept, PRODUCERS);
#endif
	      atomic { wanted = 0; seen = 0; found = 0; over_there = false; slept = false }
	   :: atomic { found == seen && !over_there -> seen = 0; found = 0; slept = false }
	   fi
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_P) && closed ->
		take(SECTION_P);
		slept = false;
		CUT
		push(UNLOCK(SECTION_P));
		wanted = 0
	   }
	fi
}

/* Records left behind, or the end, at a glance. One's own store of read_pos is seen by oneself. */
#define LEFT (seen_write_pos > read_pos && seen_write_pos > next_pos)
#ifdef NO_CHAIN_END
#define PASS_ON LEFT
#else
#define PASS_ON (LEFT || closed)
#endif

/* Whoever is told the end after it was woken passes it on. With END_ONLY_FROM_SLEEP it does so only
 * if the last thing that it did was to sleep, and not where it tried once more in between. */
#ifdef END_ONLY_FROM_SLEEP
#define OWES_END slept
#else
#define OWES_END waited
#endif

/* Try once to get a record, and wait if there is none. `wanted` counts the calls to be made. */
inline get() {
	if
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_C) && read_pos != seen_write_pos ->
		take(SECTION_C);
		next_pos = read_pos + 1;
		slept = waited;
		waited = false;
		CUT
		push(CONSUME);                                          /* R2 consume */
		CUT
		LOOK_INSIDE(PRODUCERS)
		push(UNLOCK(SECTION_C));
		wanted--
	   };
	   wake_behind_fence(PRODUCERS);
#ifndef NO_CHAIN_CONSUMERS
	   wake_next(slept && PASS_ON, CONSUMERS)
#endif
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_C) && read_pos == seen_write_pos && listed > 0 ->
		take(SECTION_C);
		next_pos = 0;
		slept = false;
		waited = false;
		CUT
		push(UNLIST);                                           /* L2 pop */
		CUT
		push(UNLOCK(SECTION_C));
		wanted--
	   }                                                            /* which does not pass on */
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_C) && read_pos == seen_write_pos && listed == 0 ->
		take(SECTION_C);
		seen = seen_write_pos;
		next_pos = 0;
		slept = false;
		CUT
		push(UNLOCK(SECTION_C))
	   };
	   park(CONSUMERS, SIDE_OF_PRODUCERS, write_pos, closed);
	   if
	   :: found != seen ->
	      atomic {
		LOCKABLE(SECTION_C) -> take(SECTION_C);
#ifndef NOTE_STALE
		if
		:: seen_write_pos < found -> seen_write_pos = found
		:: else
		fi;
#else
		seen_write_pos = (seen_write_pos < seen + 1 -> seen + 1 : seen_write_pos);
#endif
		waited = true;
		seen = 0;
		found = 0;
		over_there = false;
		slept = false;
		CUT
		push(UNLOCK(SECTION_C))
	      }
	   :: atomic { found == seen && over_there -> told = true; assert(read_pos == seen && write_pos == seen) };
#ifndef NO_CHAIN_END
	      wake_next(slept || OWES_END, CONSUMERS);
#endif
	      atomic {
		wanted = 0; waited = false; seen = 0; found = 0; over_there = false; slept = false
	      }
#ifdef HAND_BACK
	   :: found == seen && !over_there ->
	      wake_next(slept, CONSUMERS);
	      atomic { waited = true; seen = 0; found = 0; slept = false }
#else
	   :: atomic {
		found == seen && !over_there ->
		waited = true; seen = 0; found = 0; slept = false
	      }
#endif
	   fi
	fi
}

/* What a call keeps to itself. */
#define LOCALS \
	byte wanted, seen, found, next_pos, plain; \
	bool owner_died, looked, waited, slept, over_there, last

inline forget() {
	wanted = 0; seen = 0; found = 0; next_pos = 0; plain = 0;
	owner_died = false; looked = false; waited = false; slept = false;
	over_there = false; last = false;
	asleep[me] = 0; expired[me] = false
}

inline finish() {
	atomic { wanted == 0 && DRAINED(me) -> done[me] = true; slept = false; next_pos = 0 }
}

/* Nothing moves: everyone is gone, done, or asleep without a token or a slice that ran out. */
#define RESTS(p) ((p) >= N || gone[(p) % N] != RUNNING || done[(p) % N] || \
	(asleep[(p) % N] != 0 && tokens[asleep[(p) % N] - 1] == 0 && !expired[(p) % N]))
#define QUIET (RESTS(0) && RESTS(1) && RESTS(2) && RESTS(3) && RESTS(4) && RESTS(5) && \
	!BUFFERED(0) && !BUFFERED(1) && !BUFFERED(2) && !BUFFERED(3) && !BUFFERED(4) && !BUFFERED(5))

#define SLEEPS(p, place) ((p) < N && gone[(p) % N] == RUNNING && asleep[(p) % N] == 1 + (place))
#define ASLEEP(place) (SLEEPS(0, place) + SLEEPS(1, place) + SLEEPS(2, place) + \
	SLEEPS(3, place) + SLEEPS(4, place) + SLEEPS(5, place))

/* There is something for whoever sleeps there. END_DUE: the end has come, seen from outside. */
#define HUNGRY (ASLEEP(CONSUMERS) > 0 && (write_pos > read_pos || listed > 0 || END_DUE))
#define CRAMPED (ASLEEP(PRODUCERS) > 0 && (write_pos - read_pos < CAPACITY || closed))

inline expire(p) {
	if
	:: (p) < N && asleep[(p) % N] != 0 && gone[(p) % N] == RUNNING -> expired[(p) % N] = true
	:: else
	fi
}

/* The judge. At rest, either nobody sleeps on work, or somebody died or was stopped, and one
 * slice for each such event puts it right. */
proctype monitor() {
	do
	:: d_step { QUIET && (HUNGRY || CRAMPED) ->
#ifdef NO_SLICE
		assert(false);
#endif
		assert(rounds < deaths + stops + returns);
		rounds++;
		expire(0); expire(1); expire(2); expire(3); expire(4); expire(5)
	   }
	:: d_step { QUIET && !HUNGRY && !CRAMPED ->
#ifndef PLAIN_ANNOUNCE
		assert(sleepers[CONSUMERS] >= ASLEEP(CONSUMERS));
		assert(sleepers[PRODUCERS] >= ASLEEP(PRODUCERS));
		if
		:: deaths + stops == 0 ->
			assert(sleepers[CONSUMERS] == ASLEEP(CONSUMERS));
			assert(sleepers[PRODUCERS] == ASLEEP(PRODUCERS))
		:: else
		fi;
#endif
		final_checks();
		over = true
	   };
	   break
	od
}
