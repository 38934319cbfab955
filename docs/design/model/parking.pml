/* parking.pml -- put, get and the parking places, over a ring that is only two positions.
 * park.pml and close.pml include it.
 *
 * Shared words            written by                    guard
 *   write_pos             producers                     section P
 *   read_pos              consumers                     section C
 *   sleepers[place]       whoever sleeps there          none (atomic add); with SECTION_PARK the
 *                                                       section of the side that is waited for
 *   tokens[place]         the semaphore's value         none (atomic)
 *   listed                sweepers, consumers           section C: records to be redelivered
 *   closed                closer                        section P
 *   attached              producers, sweepers           section P, one bit a producer
 *
 * Every store to a word that is read outside its section passes through the store buffer, and
 * so do the unlocks (as plain release stores) and the adds to sleepers[]. That is weaker than
 * x86, where an unlock and an atomic add are fences by themselves. So only the named fences
 * order a store before a later load, and the model shows where they are needed.
 *
 * Sync points: P1 announce, P2 recheck, P3 sleep, P4 woken, P5 look, P6 post,
 *              R1 publish, R2 consume, L1 push, L2 pop, C1 close, C2 detach.
 */

#define CONSUMERS 0     /* the place where consumers sleep */
#define PRODUCERS 1     /* the place where producers sleep */

byte write_pos;
byte read_pos;
byte sleepers[2];
byte tokens[2];

byte listed;
bool closed;
bool ended;             /* the truth kept for the monitor: some consumer was told that it is over */
byte attached;

byte asleep[N];         /* 0, or 1 + the place: it is inside the semaphore's wait */
bool expired[N];        /* its slice has run out */
byte early;             /* slices that may still run out at any moment */
byte leaving;           /* calls that may still end by timeout, signal or exception */
byte rounds;            /* slices that were needed to get on */

#ifdef CACHED
byte cached_write_pos;  /* the consumers' shared copy, guarded by section C */
#endif
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
#define DETACH(p)       (12 + (p))

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
		assert(!ended);         /* nothing may be committed once a consumer was told the end */
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
	:: buffer0[p] >= DETACH(0) -> attached = attached & ~(1 << (buffer0[p] - DETACH(0)))
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

#if defined(NO_ATTACHED) || defined(DETACH_TWO_STORES)
#define IS_ENDED closed
#else
#define IS_ENDED (closed || attached == 0)
#endif

#ifdef DETACH_TWO_STORES
#define CLOSE_IF_LAST(p) CUT if :: (attached & ~(1 << (p))) == 0 -> push(CLOSE) :: else fi;
#else
#define CLOSE_IF_LAST(p)
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

/* The chain: whoever leaves something behind wakes the next one of its own side. No fence: the
 * poster of what is left behind has seen the sleepers, and found a token that is taken by now. */
#define chain(CONDITION, place) wake(true, (CONDITION) && SLEEPERS(place), place)

/* A dead owner may have stored and not posted: its heir posts in its place. */
#if MAX_DEATHS > 0
#define wake_for_the_dead(place) wake(true, owner_died && SLEEPERS(place), place)
#else
#define wake_for_the_dead(place) skip
#endif

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

/* The waiter's loop body. MOVED says whether what it waits for has changed since it looked, under
 * its own section, which it has left. It tries again afterwards. SECTION is the other side's. */
inline park(place, SECTION, MOVED) {
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
	if
#ifdef NO_RECHECK
#undef RECHECK
#define RECHECK(CONDITION) SLEEPER_FENCE ->
#else
	:: atomic { RECHECK(MOVED) push_retire(place); RECHECKED }      /* P2 recheck */
#endif
	:: atomic { RECHECK(!(MOVED)) asleep[me] = 1 + place; RECHECKED };
end_asleep:
	   if                                                           /* P3 sleep */
	   :: atomic {
		DRAINED(me) && tokens[place] > 0 ->                     /* P4 woken */
		tokens[place]--;
		asleep[me] = 0;
		expired[me] = false;
#if LEAVING > 0 || defined(HAND_BACK)
		woken = true
#endif
	      };
#ifdef TOKEN_FLAG
	      token_out[place] = false
#endif
	   :: atomic {
		expired[me] ->
		asleep[me] = 0;
		expired[me] = false;
#ifdef SWEEP_RETIRES
		push(RETIRE(place))
#endif
	      };
	      sweep_attached()
#if EARLY > 0
	   :: atomic { early > 0 -> early--; asleep[me] = 0 }
#endif
	   fi;
#ifdef SECTION_PARK
	   atomic { LOCKABLE(SECTION) -> take(SECTION); push_retire(place); push(UNLOCK(SECTION)) }
#else
#ifdef PLAIN_ANNOUNCE
	   plain = sleepers[place];
#endif
	   atomic { push_retire(place) }
#endif
	fi;
#if LEAVING > 0
	if
	:: atomic { leaving > 0 -> leaving--; wanted = 0 };
#ifndef LEAVE_WITH_TOKEN
	   wake(true, woken && SLEEPERS(place), place)  /* the token was for whoever comes next */
#endif
	:: true
	fi;
	woken = false
#endif
}

/* A waiter whose slice ran out looks for attached producers that have died. */
#define UNSWEPT(p) ((p) < NP && gone[(p) % N] == DEAD && (attached & (1 << (p))) != 0)

inline sweep_one(p) {
	if
	:: atomic {
		UNSWEPT(p) && LOCKABLE(SECTION_P) ->
		take(SECTION_P);
		CUT
		push(DETACH(p));                                        /* C2 detach */
		CLOSE_IF_LAST(p)
		CUT
		LOOK_INSIDE(CONSUMERS)
		push(UNLOCK(SECTION_P))
	   };
	   wake_behind_fence(CONSUMERS)
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

/* Try once to put a record. `wanted` counts the calls still to be made. */
inline put() {
	if
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_P) && !closed && write_pos - read_pos < CAPACITY ->
		take(SECTION_P);
		more = (write_pos + 1 - read_pos < CAPACITY);
		seen = 0;
		CUT
		push(PUBLISH);                                          /* R1 publish */
		CUT
		LOOK_INSIDE(CONSUMERS)
		push(UNLOCK(SECTION_P));
		wanted--
	   };
	   wake_behind_fence(CONSUMERS);
#ifndef NO_CHAIN_PRODUCERS
	   chain(more, PRODUCERS)
#endif
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_P) && !closed && write_pos - read_pos == CAPACITY ->
		take(SECTION_P);
		seen = read_pos;
		more = false;
		CUT
		push(UNLOCK(SECTION_P))
	   };
	   wake_for_the_dead(CONSUMERS);
	   park(PRODUCERS, SIDE_OF_CONSUMERS, (read_pos != seen || closed))
	:: atomic {
		wanted > 0 && LOCKABLE(SECTION_P) && closed ->
		take(SECTION_P);
		CUT
		push(UNLOCK(SECTION_P));
		wanted = 0
	   };
#ifndef NO_CHAIN_END
	   chain(true, PRODUCERS)
#endif
	fi
}

#ifdef CACHED
#define LOADED_WRITE_POS (cached_write_pos != read_pos -> cached_write_pos : write_pos)
#define KEEP(position) cached_write_pos = position
#else
#define LOADED_WRITE_POS write_pos
#define KEEP(position)
#endif

#ifdef NO_LIST_RECHECK
#define IS_LISTED false
#else
#define IS_LISTED (listed > 0)
#endif

/* Where a ring can end, `closed` is read in one step and write_pos in the next. */
#ifdef WITH_END
#define OPENED(CONDITION) (CONDITION) ->
#else
#define saw_end false
#define OPENED(CONDITION) wanted > 0 && LOCKABLE(SECTION_C) && (CONDITION) -> take(SECTION_C);
#endif

/* Try once to get a record. `wanted` counts the calls still to be made. */
inline get() {
#ifdef WITH_END
#ifdef POSITION_BEFORE_CLOSED
	atomic { wanted > 0 && LOCKABLE(SECTION_C) -> take(SECTION_C); seen = write_pos };
	saw_end = IS_ENDED;
#define IS_EMPTY (seen == read_pos)
#else
	atomic { wanted > 0 && LOCKABLE(SECTION_C) -> take(SECTION_C); saw_end = IS_ENDED };
#define IS_EMPTY (write_pos == read_pos)
#endif
#else
#define IS_EMPTY (write_pos == read_pos)
#endif
	if
	:: atomic {
		OPENED(!IS_EMPTY && listed == 0)
		more = (LOADED_WRITE_POS != read_pos + 1);
		next_pos = read_pos + 1;
		KEEP(LOADED_WRITE_POS);
		seen = 0;
		CUT
		push(CONSUME);                                          /* R2 consume */
		CUT
		LOOK_INSIDE(PRODUCERS)
		push(UNLOCK(SECTION_C));
		wanted--
	   };
	   wake_behind_fence(PRODUCERS);
#if defined(CACHED) && !defined(CHAIN_CACHED)
	   more = (write_pos != next_pos);
#endif
#ifndef NO_CHAIN_CONSUMERS
#ifdef NO_CHAIN_END
	   chain(more, CONSUMERS)
#else
	   chain(more || saw_end, CONSUMERS)
#endif
#endif
#ifdef REDELIVERY
	:: atomic {
		OPENED(listed > 0)
		more = (listed > 1 || !IS_EMPTY);
		seen = 0;
		CUT
		push(UNLIST);                                           /* L2 pop */
		CUT
		push(UNLOCK(SECTION_C));
		wanted--
	   };
	   chain(more, CONSUMERS)
#endif
	:: atomic {
		OPENED(IS_EMPTY && listed == 0 && saw_end)
		CUT
		assert(write_pos == read_pos);
		ended = true;
		wanted = 0;
		push(UNLOCK(SECTION_C))
	   };
#ifndef NO_CHAIN_END
	   chain(true, CONSUMERS)
#endif
	:: atomic {
		OPENED(IS_EMPTY && listed == 0 && !saw_end)
		seen = read_pos;
		more = false;
		CUT
		push(UNLOCK(SECTION_C))
	   };
	   wake_for_the_dead(PRODUCERS);
#ifdef HAND_BACK
	   wake(true, woken && SLEEPERS(CONSUMERS), CONSUMERS);
	   woken = false;
#endif
	   park(CONSUMERS, SIDE_OF_PRODUCERS, (write_pos != seen || IS_LISTED || IS_ENDED))
	fi
}

/* What a call keeps to itself. */
#define LOCALS \
	byte wanted, seen, next_pos, plain; \
	bool owner_died, looked, woken, more SAW_END
#ifdef WITH_END
#define SAW_END , saw_end
#else
#define SAW_END
#endif

inline forget() {
	wanted = 0; seen = 0; next_pos = 0; plain = 0;
	owner_died = false; looked = false; woken = false; more = false;
#ifdef WITH_END
	saw_end = false;
#endif
	asleep[me] = 0; expired[me] = false
}

inline finish() {
	atomic { wanted == 0 && DRAINED(me) -> done[me] = true }
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
		assert(rounds < deaths + stops);
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
