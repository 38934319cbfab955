/* sizes.pml -- producers that wait for different amounts of room.
 *
 * Nobody dies here, and memory is sequential. NP producers want to put one record each, of
 * NEED0, NEED1, NEED2 units. The ring is full. A consumer takes GETS records of one unit and goes
 * away. One token is one wake-up, but the one who takes it may need more room than there is,
 * while another sleeps on whose record would fit.
 *
 * PASS_ON: a producer that took a token and does not fit hands the token on, once for each value
 * of read_pos, and naps until somebody has taken it. "Somebody" may be one who does not fit.
 * PASS_ON_ALWAYS: the same without the limit and without the nap.
 */
#define N (NP + 1)
#define NEED(p) ((p) == 0 -> NEED0 : ((p) == 1 -> NEED1 : NEED2))
#define FREE (CAPACITY - (write_pos - read_pos))

byte write_pos = CAPACITY;
byte read_pos;
byte sleepers;
byte tokens;
bool asleep[N];
bool napping[N];
bool expired[N];
bool done[N];
byte rounds;

inline wake() {
	if
	:: sleepers > 0 ->                                              /* P5 look */
	   if
	   :: tokens == 0 -> tokens++                                   /* P6 post */
	   :: tokens > 0
	   fi
	:: sleepers == 0
	fi
}

proctype producer(byte me) {
	byte seen, passed;
	bool woken;

	do
	:: atomic { NEED(me) <= FREE -> write_pos = write_pos + NEED(me) };     /* R1 publish */
	   wake();
	   if
	   :: FREE > 0 -> wake()                                        /* chain */
	   :: FREE == 0
	   fi;
	   break
	:: atomic { NEED(me) > FREE -> seen = read_pos };
#if defined(PASS_ON) || defined(PASS_ON_ALWAYS)
	   if
#ifdef PASS_ON_ALWAYS
	   :: atomic { woken -> woken = false };
	      wake()
#else
	   :: atomic { woken && passed != seen -> passed = seen; woken = false };
	      wake();
	      napping[me] = true;
	      if
	      :: atomic { tokens == 0 -> napping[me] = false; expired[me] = false }
	      :: atomic { expired[me] -> napping[me] = false; expired[me] = false }
	      fi
	   :: atomic { woken && passed == seen -> woken = false }
#endif
	   :: !woken
	   fi;
#endif
	   sleepers++;                                                  /* P1 announce */
	   if
	   :: read_pos != seen                                          /* P2 recheck */
	   :: atomic { read_pos == seen -> asleep[me] = true };
end_asleep:
	      if                                                        /* P3 sleep */
	      :: atomic { tokens > 0 -> tokens--; asleep[me] = false; woken = true }  /* P4 woken */
	      :: atomic { expired[me] -> asleep[me] = false; expired[me] = false }
	      fi
	   fi;
	   sleepers--
	od;
	atomic { done[me] = true; seen = 0; passed = 0; woken = false }
}

proctype consumer(byte me) {
	byte count;

	do
	:: atomic { count < GETS -> count++; read_pos++ };              /* R2 consume */
	   wake()
	:: atomic { count == GETS -> done[me] = true; break }
	od
}

#define RESTS(p) ((p) >= N || done[(p) % N] || \
	(asleep[(p) % N] && tokens == 0 && !expired[(p) % N]))
#define DOZES(p) ((p) < N && napping[(p) % N] && tokens > 0 && !expired[(p) % N])
#define IDLE(p) (RESTS(p) || DOZES(p))
#define CRAMPED(p) ((p) < NP && asleep[(p) % N] && NEED((p) % N) <= FREE)
#define ALL(WHAT) (WHAT(0) && WHAT(1) && WHAT(2) && WHAT(3))
#define ANY(WHAT) (WHAT(0) || WHAT(1) || WHAT(2) || WHAT(3))

inline expire(p) {
	if
	:: (p) < N && (asleep[(p) % N] || napping[(p) % N]) -> expired[(p) % N] = true
	:: else
	fi
}

/* At rest nobody whose record fits may be asleep, but for SLICES times in a run. */
proctype monitor() {
	do
	:: d_step {
		ALL(RESTS) && ANY(CRAMPED) ->
		assert(rounds < SLICES);
		rounds++;
		expire(0); expire(1); expire(2)
	   }
	:: d_step {                                     /* a nap ends: nobody is left to take it */
		ALL(IDLE) && ANY(DOZES) ->
		if :: DOZES(0) -> expired[0] = true :: else fi;
		if :: DOZES(1) -> expired[1 % N] = true :: else fi;
		if :: DOZES(2) -> expired[2 % N] = true :: else fi
	   }
	:: d_step { ALL(RESTS) && !ANY(CRAMPED) -> skip };
	   break
	od
}

init {
	atomic {
		byte i = 0;
		do
		:: i < NP -> run producer(i); i++
		:: else -> break
		od;
		run consumer(NP);
		i = 0;
		run monitor()
	}
}
