/* grammar.h: what vocabulary.c, automaton.c and grammar.c share: tokens as a trie of their bytes,
 * and an automaton with all that has been found out about it. */
#ifndef MARLIN_GRAMMAR_H
#define MARLIN_GRAMMAR_H

#include <stdint.h>

#include "marlin.h"

/* Longer tokens are never allowed; published vocabularies end at 512 bytes. */
#define MAX_TOKEN_BYTES 1024
/* Characters of a token that is plain: a text that has room for so many takes each of them. */
#define PLAIN_CHARACTERS 16

/* A trie in preorder. */
typedef struct {
    int32_t next;   /* the node after all that begin with this one */
    int32_t token;  /* the first token that ends here, or -1 */
    uint16_t depth; /* bytes up to here, from 1 */
    uint8_t byte;
} trie_node;

typedef struct {
    trie_node *nodes;
    int32_t count;
} trie;

struct marlin_vocabulary {
    int32_t size;
    int32_t num_words; /* of a mask */
    int32_t *same;     /* [size] the next token of the same bytes, or -1 */
    uint32_t *ends;    /* mask of the tokens that end a sequence */
    uint32_t *plain;   /* mask of the tokens that are a JSON string's text as it stands */
    trie all;
    trie rest; /* of the tokens that are not plain */
};

/* ---- automata ---- */

/* Places of one position, and frames of one place. */
#define MAX_PLACES 4096
/* Places looked at in one call, which may be the making of a grammar: a hundredth of a second to a
 * tenth. */
#define MAX_WORK 4000000
/* What a grammar remembers. */
#define MAX_BYTES ((int64_t)16 << 20)
#define NUM_HEADS 4096

/* Positions; the first that is made is 1, the text's beginning. */
enum { DEAD, ROOT };
/* takes_plain: there is room for a token that is plain, or for as many as may come. */
enum { ROOM = 1, ENDLESS };
/* c of a MARLIN_BOTH whose second rule, which must not hold, is a list of texts. */
#define WITHOUT_LIST 2
/* In the place of a pair's positions: both rules' beginnings. */
#define BEGINNING -1

/* A rule that a place is within. MARLIN_REPEAT: x times so far. MARLIN_BOTH: the positions x and y
 * of its rules. */
typedef struct {
    int32_t edge, x, y, parent;
    int32_t depth, chain;
    int32_t seen, from; /* of the search that last came here */
    int32_t fate;
} frame;

/* state < 0: a pair, which is its frame. */
typedef struct {
    int32_t state, frame;
} place;

/* All places that a text can lead to. */
typedef struct {
    int32_t first, count; /* places */
    int32_t row;          /* of next positions, -1 before the first is known */
    int32_t chain;
    int32_t accepts;
    int32_t takes_plain;
    uint32_t *mask;
} position;

typedef struct {
    int32_t x, y;
    int32_t fate;
} pair;

typedef struct {
    void *items;
    int32_t count, room;
} table;

struct marlin_grammar {
    const marlin_vocabulary *vocabulary;
    marlin_edge *edges;  /* by source */
    int32_t *first_edge; /* [num_states + 1] */
    int32_t *start;      /* [num_states] a rule's beginning as a position, or -1 */
    int32_t num_states, num_edges;
    int32_t num_classes;
    uint8_t class_of[256];
    table frames, places, positions, rows, pairs;
    int32_t frame_heads[NUM_HEADS], position_heads[NUM_HEADS];
    int64_t bytes, work;
    int32_t searches, nesting;
    int code; /* what has failed in this call */
    /* The set of places that is being made. */
    place made[MAX_PLACES];
    int32_t num_made, accepts, stamp;
    struct {
        place at;
        int32_t stamp;
    } marks[4 * MAX_PLACES];
};

typedef marlin_grammar grammar;

#define FRAME(g, i) (((frame *)(g)->frames.items)[i])
#define POSITION(g, i) (((position *)(g)->positions.items)[i])
#define PLACE(g, i) (((place *)(g)->places.items)[i])
#define PAIR(g, i) (((pair *)(g)->pairs.items)[i])
#define ROW(g, i) (((int32_t *)(g)->rows.items)[i])

static inline int marlin_is_repeat(const marlin_edge *e)
{
    return e->kind == MARLIN_REPEAT || e->kind == MARLIN_TEXT;
}

/* Each may fail, which is then g->code; positions are good until it begins anew. */

/* Know nothing but the beginning: ROOT, if anything at all is taken. */
void marlin_automaton_begin(grammar *g);
void marlin_automaton_forget(grammar *g);
/* The position after a byte of this class; -1 if it failed. */
int32_t marlin_automaton_step(grammar *g, int32_t from, int32_t class);
/* Whether some text leads a pair of positions, or of BEGINNINGs, to an end of both of an edge's
 * rules. */
int marlin_automaton_can_end(grammar *g, int32_t edge, int32_t x, int32_t y);

#endif
