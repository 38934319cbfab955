/* native_allocator.h -- the cells of an arena as one process has them, for C.
 *
 * native_allocator.c changes tags in the allocator's section; native_cells.c is what Python
 * calls. The protocol is that of reference_allocator.py, whose header names the shared
 * fields, the sync points, and what holds if a process dies. */
#ifndef IPCMAP_NATIVE_ALLOCATOR_H
#define IPCMAP_NATIVE_ALLOCATOR_H

#include "native.h"

enum { MOST_CLASSES = 58 }; /* lengths of cells: powers of two from 64 on */

/* Cells of one length: SizeClass of layout.py. All but the length are indices of words. */
typedef struct {
    uint64_t cell_nbytes, capacity;
    uint64_t line; /* of the class table: CLASS_HIGH_WATER and so on */
    uint64_t tags, lengths;
    uint64_t first_cell; /* offset in bytes */
} class_t;

typedef struct cells {
    shm_word_t *shm_words; /* the arena, in the region */
    pthread_mutex_t *shm_section;
    uint64_t limit, keep, max_processes;
    size_t count; /* of classes */
    class_t classes[MOST_CLASSES];
} cells_t;

/* One cell, and the tag that a look from outside found in it. */
typedef struct {
    const class_t *class;
    uint64_t index, tag;
} place_t;

/* DONE, or UNUSUAL: the reference engine is to look, and nothing was changed. */
outcome_t cells_take(cells_t *, uint64_t nbytes, uint64_t kind, uint64_t owner, place_t *taken);
outcome_t cells_find(const cells_t *, uint64_t offset, uint64_t generation, uint64_t kind, place_t *found);
outcome_t cells_free(cells_t *, const place_t *);
outcome_t cells_retag(cells_t *, const place_t *, uint64_t kind, uint64_t owner);
outcome_t cells_pass_on(cells_t *, uint64_t offset, uint64_t generation, uint64_t kind,
                        uint64_t owner, uint64_t *nbytes);
bool cells_excess(const cells_t *);
bool cells_locate(const cells_t *, uint64_t offset, place_t *found);

static inline uint64_t cells_offset(const place_t *place)
{
    return place->class->first_cell + place->index * place->class->cell_nbytes;
}

#endif
