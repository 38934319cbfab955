/* native_semaphores.c -- what is taken and given of a semaphore.
 *
 * The C twin of reference_semaphores.py, whose header says what the ledger is for, names
 * the shared fields and their guard, and says what holds if a process dies. Each function
 * is one attempt, made in the section. Left to the reference engine, by UNUSUAL: a journal
 * that is not 0, a ledger without room, the release of a token that this process has not
 * (it may be the first that travels), the maximum, damage.
 *
 * Sync points
 *   S1 intend  journal = 1: value is to be added up from the ledger; cleared at the end
 *   M1 take    one store: the count of the entry; of the value where tokens travel
 *   M2 give    the same */
#include "native_monitor.h"

/* Return the word of this process's entry, or of a free one; 0 = all are in use. */
static uint64_t entry_of(monitor_t *semaphore, uint64_t process)
{
    uint64_t end = M_FIRST_ENTRY + M_ENTRY * semaphore->entries, vacant = 0;
    uint64_t entry = atomic_load_explicit(&semaphore->own, memory_order_relaxed);
    if (LIKELY(entry < end && monitor_word(semaphore, entry) == process))
        return entry;
    for (entry = M_FIRST_ENTRY; entry < end; entry += M_ENTRY) {
        if (monitor_word(semaphore, entry) == process)
            break;
        if (!vacant && !monitor_word(semaphore, entry + 1))
            vacant = entry;
    }
    entry = entry < end ? entry : vacant;
    if (entry)
        atomic_store_explicit(&semaphore->own, entry, memory_order_relaxed);
    return entry;
}

outcome_t semaphore_take(monitor_t *semaphore, holder_t me)
{
    if (monitor_word(semaphore, M_JOURNAL))
        return UNUSUAL;
    uint64_t value = monitor_word(semaphore, M_VALUE);
    if (!value)
        return NOTHING;
    if (value > M_MAX_VALUE)
        return UNUSUAL;
    if (monitor_word(semaphore, M_TRAVELS)) {
        STEP("M1 take, travels", monitor_store(semaphore, M_VALUE, value - 1));
        return DONE;
    }
    uint64_t entry = entry_of(semaphore, me.process);
    uint64_t count = entry ? monitor_word(semaphore, entry + 1) : UINT64_MAX;
    if (count > semaphore->initial)
        return UNUSUAL;
    STEP("S1 intend", monitor_store(semaphore, M_JOURNAL, 1));
    STEP("who", monitor_store(semaphore, entry, me.process));
    STEP("M1 take", monitor_store(semaphore, entry + 1, count + 1));
    STEP("value", monitor_store(semaphore, M_VALUE, value - 1));
    STEP("clear journal", monitor_store(semaphore, M_JOURNAL, 0));
    return DONE;
}

outcome_t semaphore_give(monitor_t *semaphore, holder_t me, uint64_t *sleepers)
{
    uint64_t value = monitor_word(semaphore, M_VALUE);
    if (monitor_word(semaphore, M_JOURNAL) || value > M_MAX_VALUE)
        return UNUSUAL;
    if (monitor_word(semaphore, M_TRAVELS)) {
        if (value >= semaphore->maximum)
            return UNUSUAL;
        STEP("M2 give, travels", monitor_store(semaphore, M_VALUE, value + 1));
    } else {
        uint64_t entry = me.process ? entry_of(semaphore, me.process) : 0;
        uint64_t count = entry && monitor_word(semaphore, entry) == me.process ? monitor_word(semaphore, entry + 1) : 0;
        if (!count || count > semaphore->initial)
            return UNUSUAL;
        STEP("S1 intend", monitor_store(semaphore, M_JOURNAL, 1));
        STEP("M2 give", monitor_store(semaphore, entry + 1, count - 1));
        STEP("value", monitor_store(semaphore, M_VALUE, value + 1));
        STEP("clear journal", monitor_store(semaphore, M_JOURNAL, 0));
    }
    STEP("P5 look", *sleepers = monitor_word(semaphore, M_SLEEPERS));
    return DONE;
}
