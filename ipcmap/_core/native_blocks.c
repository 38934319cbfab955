/* native_blocks.c -- put and get of records that travel in blocks. See native_call.h.
 *
 * The C twin of _put_large and _unloaded in ring_handle.py, of put_block in
 * reference_ring_blocks.py and of the get of a block there; that file says who owns a
 * block, whoever dies. Leases and batches are left to the reference engine.
 *
 * Shared fields: the first words of a block, written by who owns it; those of a block in
 * the ring in the ring's sections (native_ring.c).
 *
 * Sync points
 *   B1 tag    producer: cells_take
 *   B2 retag  consumer: in ring_get_block, before R2
 *   B3 free   consumer: after its copy
 *
 * If a process dies before R1 the block is its own, and the sweep of its slot frees it;
 * from R2 to B3 it was the one record of an unfinished get, and the sweep frees it.
 *
 * The bytes are copied with no section held, and without the GIL where they are many. A
 * block in hand that is not put is freed before anything else is done: no call is broken
 * off in here but by death, so no hand is needed. A child that a signal handler forked in
 * here, wherever Python code ran, leaves the block to its parent. */
#include "native_call.h"

#include <string.h>
#include <unistd.h>

static const uint64_t MANY = 1 << 18; /* bytes whose copy takes longer than to let go of the GIL */

static void copy(void *to, const void *from, uint64_t nbytes)
{
    if (nbytes < MANY) {
        COPY("bytes", to, from, nbytes);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    COPY("many bytes", to, from, nbytes);
    Py_END_ALLOW_THREADS
}

static void store_block(const block_t *block, int index, uint64_t value)
{
    STEP("word", atomic_store_explicit(&block->shm_words[index], value, memory_order_release));
}

/* Free a block of our own, later where that cannot be done now; whatever is raised, the
 * exception that is under way stays. */
static bool free_block(core_t *core, const block_t *block)
{
    place_t place;
    PyObject *type, *value, *traceback, *nothing = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    outcome_t outcome = cells_find(block->cells, block->offset, block->generation, KIND_RECORD, &place);
    if (outcome == DONE)
        STEP("B3 free", outcome = cells_free(block->cells, &place));
    if (outcome == DONE) {
        nothing = native_trimmed(core->allocator) ? Py_NewRef(Py_None) : NULL;
    } else {
        const uint64_t numbers[4] = {block->offset, 0, block->generation, KIND_RECORD};
        PyObject *cell = native_cell(numbers);
        if (cell)
            nothing = PyObject_CallFunctionObjArgs(native_bound.free, core->allocator, cell, NULL);
        Py_XDECREF(cell);
    }
    Py_XDECREF(nothing);
    if (type)
        PyErr_Restore(type, value, traceback);
    return nothing;
}

/* Put a record by way of a block. GO_ON = it is put; FAILED = an exception; GIVE_UP = the
 * reference engine is to do it, or to say why not. */
verdict_t put_large(PyObject *self, core_t *core, const unsigned char *data, uint64_t length, int64_t deadline)
{
    if (!core->allocator)
        return GIVE_UP;
    cells_t *cells = &core->allocator->cells;
    pid_t maker = getpid();
    uint64_t owner;
    place_t taken;
    if (length > LARGEST - BLOCK_HEADER)
        return GIVE_UP;
    if (!native_owner(core->allocator, &owner))
        return FAILED;
    if (getpid() != maker)
        return GIVE_UP;
    outcome_t outcome;
    STEP("B1 tag", outcome = cells_take(cells, BLOCK_HEADER + length, KIND_RECORD, owner, &taken));
    if (outcome != DONE)
        return GIVE_UP;
    block_t block = {
        .cells = cells,
        .offset = cells_offset(&taken),
        .generation = taken.tag >> GENERATION_SHIFT,
        .owner = owner,
    };
    block.shm_words = (shm_word_t *)core->words.buf + block.offset / 8;
    store_block(&block, B_RING, (uint64_t)((unsigned char *)core->memory.buf - (unsigned char *)core->words.buf));
    store_block(&block, B_RING_GENERATION, core->tag >> GENERATION_SHIFT);
    store_block(&block, B_POS, 0);
    store_block(&block, B_NBYTES, length);
    store_block(&block, B_CALL, 0);
    store_block(&block, B_AGAIN, 0);
    if (!native_trimmed(core->allocator)) {
        if (getpid() == maker)
            free_block(core, &block);
        return FAILED;
    }
    if (getpid() != maker)
        return GIVE_UP;
    copy((unsigned char *)block.shm_words + BLOCK_HEADER, data, length);
    attempt_t attempt = {.block = &block};
    waiting_t waiting = {.slept = false};
    for (;;) {
        outcome = try_to(core, PUT_BLOCK, &attempt);
        if (LIKELY(outcome == DONE))
            return call_listeners(self, PUT_BLOCK, attempt.sleepers) ? GO_ON : FAILED;
        verdict_t verdict = GIVE_UP;
        if (outcome == NOTHING) {
            verdict = wait_for_other(self, core, &core->ring.producers, &attempt.seen, deadline, &waiting);
            if (getpid() != maker)
                return verdict == FAILED ? FAILED : GIVE_UP;
        }
        if (verdict != GO_ON)
            return free_block(core, &block) && verdict != FAILED ? GIVE_UP : FAILED;
    }
}

/* Raise what the reference engine raises for a block that says it has more bytes than it has. */
static void raise_damaged(uint64_t length, uint64_t nbytes)
{
    PyObject *errors = PyImport_ImportModule("ipcmap.errors");
    PyObject *class = errors ? PyObject_GetAttrString(errors, "CorruptError") : NULL;
    if (class)
        PyErr_Format(class, "ring is damaged: length of a record=%llu, block=%llu; make another",
                     (unsigned long long)length, (unsigned long long)nbytes);
    Py_XDECREF(class);
    Py_XDECREF(errors);
}

/* Say which block the record at pos names, and how long the record in it is: a guess, from
 * outside of the section. */
static bool guess_block(const core_t *core, uint64_t pos, block_t *block, uint64_t *length, uint64_t *most)
{
    place_t place;
    if (!ring_names(&core->ring, pos, &block->offset, &block->generation) ||
        !cells_locate(block->cells, block->offset, &place) || place.class->cell_nbytes < BLOCK_HEADER ||
        cells_offset(&place) + place.class->cell_nbytes > (uint64_t)core->words.len)
        return false;
    block->shm_words = (shm_word_t *)core->words.buf + block->offset / 8;
    *most = place.class->cell_nbytes - BLOCK_HEADER;
    *length = atomic_load_explicit(&block->shm_words[B_NBYTES], memory_order_acquire);
    return *length <= *most;
}

/* Take the record at pos, if it is the oldest and in a block; seen = up to where the caller
 * has found that there are some. GO_ON without a record = try again; GIVE_UP = go on as with
 * any other outcome. */
verdict_t get_large(PyObject *self, core_t *core, uint64_t pos, uint64_t seen, PyObject **record)
{
    if (!core->allocator)
        return GIVE_UP;
    pid_t maker = getpid();
    block_t block = {.cells = &core->allocator->cells};
    attempt_t attempt = {.block = &block, .seen = seen};
    uint64_t length, most;
    if (!guess_block(core, pos, &block, &length, &most))
        return GIVE_UP;
    if (!native_owner(core->allocator, &block.owner))
        return FAILED;
    if (getpid() != maker)
        return GO_ON;
    *record = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!*record) {
        PyErr_Clear(); /* the guess may be wrong; if it is not, the reference engine says so */
        return GIVE_UP;
    }
    outcome_t outcome = try_to(core, GET_BLOCK, &attempt);
    if (outcome != DONE) {
        Py_CLEAR(*record);
        return outcome == MISFIT ? GO_ON : GIVE_UP;
    }
    uint64_t nbytes = atomic_load_explicit(&block.shm_words[B_NBYTES], memory_order_acquire);
    if (nbytes == length) {
        copy(PyBytes_AsString(*record), (unsigned char *)block.shm_words + BLOCK_HEADER, nbytes);
    } else { /* another use of the same block, or damage */
        Py_CLEAR(*record);
        if (nbytes <= most)
            *record = PyBytes_FromStringAndSize((char *)block.shm_words + BLOCK_HEADER, (Py_ssize_t)nbytes);
        else
            raise_damaged(nbytes, most + BLOCK_HEADER);
    }
    if (!free_block(core, &block) || (*record && !call_listeners(self, GET_BLOCK, attempt.sleepers))) {
        if (*record)
            return_all(self, Py_BuildValue("(O)", *record));
        Py_CLEAR(*record);
    }
    return *record ? GO_ON : FAILED;
}
