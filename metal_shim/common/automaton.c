/* automaton.c: which bytes, and so which tokens, may follow a text, by a grammar's automaton.
 *
 * A place in the grammar is a state and the frames of the rules that it is within; a position is
 * the set of all places that a text can lead to. Frames and positions are kept once each, so equal
 * ones have equal numbers, and a position's next ones and its mask are found once and remembered.
 * Where two rules hold at once (MARLIN_BOTH), a place is a pair of positions. */
#include <stdlib.h>
#include <string.h>

#include "common/buffers.h"
#include "common/grammar.h"

#define MAX_DEPTH 512
/* Pairs within pairs, each of them calls of C. */
#define MAX_NESTING 32
/* Pairs looked at to see whether two rules can both be satisfied; what is open then may be. */
#define MAX_PAIRS 1000

enum { UNKNOWN, ALIVE, HOPELESS };
/* In the place of a pair's positions, where the second rule can no longer be what the first is, so
 * that the frame is a call of the first. */
#define CALL -2

/* Room for `more` items at a table's end; the first one's number, or -1. */
static int32_t extend(grammar *g, table *t, int32_t more, size_t size)
{
    if (g->code) return -1;
    if (t->count + more > t->room) {
        int32_t room = t->room ? t->room * 2 : 256;
        while (room < t->count + more) room *= 2;
        int64_t bytes = (int64_t)(room - t->room) * (int64_t)size;
        void *items = g->bytes + bytes > MAX_BYTES ? NULL : realloc(t->items, room * size);
        if (!items) {
            g->code = MARLIN_ENOMEM;
            return -1;
        }
        g->bytes += bytes;
        t->items = items;
        t->room = room;
    }
    int32_t first = t->count;
    t->count += more;
    return first;
}

static uint32_t mix(uint32_t hash, uint32_t value) { return (hash ^ value) * 0x9e3779b1u; }

/* The frame's number; -1 when it would be too deep, or without memory. */
static int32_t intern_frame(grammar *g, int32_t edge, int32_t x, int32_t y, int32_t parent)
{
    if (parent < 0) return -1;
    uint32_t hash =
        mix(mix(mix(mix(1, (uint32_t)edge), (uint32_t)x), (uint32_t)y), (uint32_t)parent);
    int32_t *head = &g->frame_heads[hash >> 20];
    for (int32_t i = *head; i > 0; i = FRAME(g, i).chain) {
        const frame *f = &FRAME(g, i);
        if (f->edge == edge && f->x == x && f->y == y && f->parent == parent) return i;
    }
    int32_t depth = FRAME(g, parent).depth + 1;
    if (depth > MAX_DEPTH) return -1;
    int32_t i = extend(g, &g->frames, 1, sizeof(frame));
    if (i < 0) return -1;
    FRAME(g, i) =
        (frame){.edge = edge, .x = x, .y = y, .parent = parent, .depth = depth, .chain = *head};
    *head = i;
    return i;
}

/* ---- making a set of places ---- */

/* Whether something has failed in this call; one step more of it. */
static int works(grammar *g)
{
    if (!g->code && ++g->work > MAX_WORK) g->code = MARLIN_EINVAL;
    return g->code;
}

static void add(grammar *g, int32_t state, int32_t frame_of_it)
{
    if (frame_of_it < 0 || works(g)) return;
    uint32_t at = mix(mix(1, (uint32_t)state), (uint32_t)frame_of_it) >> 18;
    while (g->marks[at].stamp == g->stamp) {
        if (g->marks[at].at.state == state && g->marks[at].at.frame == frame_of_it) return;
        at = (at + 1) % (4 * MAX_PLACES);
    }
    if (g->num_made == MAX_PLACES) {
        g->code = MARLIN_EINVAL;
        return;
    }
    g->marks[at].stamp = g->stamp;
    g->marks[at].at = g->made[g->num_made++] = (place){state, frame_of_it};
}

/* Into a rule that has been there `times` times. */
static void enter(grammar *g, int32_t edge, int32_t times, int32_t parent)
{
    const marlin_edge *e = &g->edges[edge];
    int32_t next = g->first_edge[e->target];
    int is_last = e->b == 1 && e->c == 1 && g->first_edge[e->target + 1] == next + 1 &&
                  g->edges[next].kind == MARLIN_RETURN;
    add(g, e->a, is_last ? parent : intern_frame(g, edge, times, 0, parent));
}

static void leave(grammar *g, int32_t frame_of_it)
{
    if (frame_of_it == 0) {
        g->accepts = 1;
        return;
    }
    frame f = FRAME(g, frame_of_it);
    const marlin_edge *e = &g->edges[f.edge];
    int32_t times = e->kind == MARLIN_BOTH ? 1 : f.x + 1;
    if (e->kind == MARLIN_BOTH || times >= e->b) add(g, e->target, f.parent);
    if (e->kind == MARLIN_BOTH) return;
    if (e->c < 0) /* more than the least are all the same */
        enter(g, f.edge, times < e->b ? times : e->b, f.parent);
    else if (times < e->c)
        enter(g, f.edge, times, f.parent);
}

/* Add the places that a place leads to without a byte. */
static void follow(grammar *g, place p)
{
    for (int32_t i = g->first_edge[p.state]; i < g->first_edge[p.state + 1]; i++) {
        const marlin_edge *e = &g->edges[i];
        if (e->kind == MARLIN_EMPTY) add(g, e->target, p.frame);
        if (e->kind == MARLIN_BOTH) add(g, -1, intern_frame(g, i, BEGINNING, BEGINNING, p.frame));
        if (e->kind == MARLIN_RETURN) leave(g, p.frame);
        if (!marlin_is_repeat(e)) continue;
        if (e->b == 0) add(g, e->target, p.frame);
        if (e->c != 0) enter(g, i, 0, p.frame);
    }
}

static int takes_bytes(const grammar *g, place p)
{
    if (p.state < 0) return 1;
    for (int32_t i = g->first_edge[p.state]; i < g->first_edge[p.state + 1]; i++)
        if (g->edges[i].kind == MARLIN_BYTE) return 1;
    return 0;
}

/* Whether a place is before a character of a string that has room for plain tokens. One that may
 * become longer than any text of a list is none of them in the end. */
static int takes_plain(const grammar *g, place p)
{
    if (p.frame == 0) return 0;
    const frame *f = &FRAME(g, p.frame);
    const marlin_edge *e = &g->edges[f->edge];
    if (p.state < 0) {
        int is_endless = f->x > DEAD && POSITION(g, f->x).takes_plain == ENDLESS;
        return is_endless && e->c == WITHOUT_LIST ? ENDLESS : 0;
    }
    if (e->kind != MARLIN_TEXT || e->a != p.state) return 0;
    return e->c < 0 ? ENDLESS : e->c - f->x >= PLAIN_CHARACTERS ? ROOM : 0;
}

static int by_place(const void *left, const void *right)
{
    const place *a = left, *b = right;
    if (a->state != b->state) return a->state < b->state ? -1 : 1;
    return a->frame < b->frame ? -1 : a->frame > b->frame;
}

static void begin_set(grammar *g)
{
    g->num_made = g->accepts = 0;
    g->stamp++;
}

/* The position of what was added, and of what that leads to without a byte; -1 if it failed. */
static int32_t end_set(grammar *g)
{
    int32_t count = 0;
    for (int32_t i = 0; i < g->num_made && !g->code; i++)
        if (g->made[i].state >= 0) follow(g, g->made[i]);
    for (int32_t i = 0; i < g->num_made; i++)
        if (takes_bytes(g, g->made[i])) g->made[count++] = g->made[i];
    if (g->code) return -1;
    if (count == 0 && !g->accepts) return DEAD;
    qsort(g->made, (size_t)count, sizeof *g->made, by_place);
    uint32_t hash = mix(1, (uint32_t)g->accepts);
    int32_t plain = 0;
    for (int32_t i = 0; i < count; i++) {
        hash = mix(mix(hash, (uint32_t)g->made[i].state), (uint32_t)g->made[i].frame);
        int taken = takes_plain(g, g->made[i]);
        if (taken > plain) plain = taken;
    }
    int32_t *head = &g->position_heads[hash >> 20];
    for (int32_t i = *head; i > 0; i = POSITION(g, i).chain) {
        const position *p = &POSITION(g, i);
        if (p->count != count || p->accepts != g->accepts) continue;
        if (count == 0 ||
            memcmp(&PLACE(g, p->first), g->made, (size_t)count * sizeof *g->made) == 0)
            return i;
    }
    int32_t first = extend(g, &g->places, count, sizeof(place));
    int32_t i = extend(g, &g->positions, 1, sizeof(position));
    if (i < 0) return -1;
    if (count > 0) memcpy(&PLACE(g, first), g->made, (size_t)count * sizeof *g->made);
    POSITION(g, i) = (position){.first = first,
                                .count = count,
                                .row = -1,
                                .chain = *head,
                                .accepts = g->accepts,
                                .takes_plain = plain};
    *head = i;
    return i;
}

/* ---- two rules at once ---- */

static int32_t beginning(grammar *g, int32_t rule)
{
    if (g->start[rule] < 0) {
        begin_set(g);
        add(g, rule, 0);
        g->start[rule] = end_set(g);
    }
    return g->start[rule];
}

static int is_over(const grammar *g, const marlin_edge *e, int32_t x, int32_t y)
{
    if (!POSITION(g, x).accepts) return 0;
    return POSITION(g, y).accepts ? !e->c : e->c != 0;
}

/* A pair that is no end itself: whether it may go on to one. */
static int goes_on(const grammar *g, const marlin_edge *e, int32_t x, int32_t y)
{
    return POSITION(g, x).count > 0 && (e->c || POSITION(g, y).count > 0);
}

/* Where a pair comes to by a byte; fate UNKNOWN for nowhere. */
static pair step_pair(grammar *g, int32_t edge, int32_t x, int32_t y, int32_t class)
{
    const marlin_edge *e = &g->edges[edge];
    if (works(g)) return (pair){DEAD, DEAD, UNKNOWN};
    if (g->nesting == MAX_NESTING) g->code = MARLIN_EINVAL;
    g->nesting++;
    int32_t a = marlin_automaton_step(g, x == BEGINNING ? beginning(g, e->a) : x, class);
    int32_t b = marlin_automaton_step(g, y == BEGINNING ? beginning(g, e->b) : y, class);
    g->nesting--;
    if (g->code || a == DEAD || (b == DEAD && !e->c)) return (pair){DEAD, DEAD, UNKNOWN};
    return (pair){a, b, ALIVE};
}

/* By breadth. */
int marlin_automaton_can_end(grammar *g, int32_t edge, int32_t x, int32_t y)
{
    const marlin_edge *e = &g->edges[edge];
    int32_t root = intern_frame(g, edge, x, y, 0);
    if (root < 0) return 1;
    if (FRAME(g, root).fate) return FRAME(g, root).fate == ALIVE;
    int32_t queue[MAX_PAIRS], count = 1, search = ++g->searches;
    queue[0] = root;
    FRAME(g, root).from = 0;
    FRAME(g, root).seen = search;
    for (int32_t i = 0; i < count; i++) {
        frame f = FRAME(g, queue[i]);
        for (int32_t class = 0; class < g->num_classes; class++) {
            pair p = step_pair(g, edge, f.x, f.y, class);
            if (g->code) return 1;
            if (p.fate == UNKNOWN) continue;
            int ends = is_over(g, e, p.x, p.y) || (e->c && p.y == DEAD);
            int32_t next = goes_on(g, e, p.x, p.y) ? intern_frame(g, edge, p.x, p.y, 0) : 0;
            if (ends || (next > 0 && FRAME(g, next).fate == ALIVE)) {
                for (int32_t j = queue[i]; j > 0; j = FRAME(g, j).from) FRAME(g, j).fate = ALIVE;
                return 1;
            }
            if (next <= 0 || FRAME(g, next).fate == HOPELESS || FRAME(g, next).seen == search)
                continue;
            if (count == MAX_PAIRS) return 1;
            FRAME(g, next).seen = search;
            FRAME(g, next).from = queue[i];
            queue[count++] = next;
        }
    }
    for (int32_t i = 0; i < count; i++) FRAME(g, queue[i]).fate = HOPELESS;
    return 0;
}

/* A frame on another beginning. */
static int32_t rebase(grammar *g, int32_t from, int32_t base)
{
    if (from == 0) return base;
    frame f = FRAME(g, from);
    return intern_frame(g, f.edge, f.x, f.y, rebase(g, f.parent, base));
}

/* Add what a pair has become. */
static void add_pair(grammar *g, int32_t edge, pair p, int32_t parent)
{
    const marlin_edge *e = &g->edges[edge];
    if (p.fate == UNKNOWN) return;
    if (is_over(g, e, p.x, p.y)) add(g, e->target, parent);
    if (!goes_on(g, e, p.x, p.y) || p.fate == HOPELESS) return;
    if (p.y != DEAD) {
        add(g, -1, intern_frame(g, edge, p.x, p.y, parent));
        return;
    }
    int32_t base = intern_frame(g, edge, CALL, CALL, parent);
    position first = POSITION(g, p.x);
    for (int32_t i = 0; i < first.count; i++) {
        place at = PLACE(g, first.first + i);
        add(g, at.state, rebase(g, at.frame, base));
    }
}

int32_t marlin_automaton_step(grammar *g, int32_t from, int32_t class)
{
    if (g->code) return -1;
    if (from == DEAD) return DEAD;
    if (POSITION(g, from).row < 0) {
        int32_t row = extend(g, &g->rows, g->num_classes, sizeof(int32_t));
        if (row < 0) return -1;
        memset(&ROW(g, row), -1, (size_t)g->num_classes * sizeof(int32_t));
        POSITION(g, from).row = row;
    }
    position p = POSITION(g, from);
    if (ROW(g, p.row + class) >= 0) return ROW(g, p.row + class);
    /* First the positions of pairs, which are sets of their own. */
    int32_t base = g->pairs.count, num_pairs = 0;
    while (num_pairs < p.count && PLACE(g, p.first + num_pairs).state < 0) {
        frame f = FRAME(g, PLACE(g, p.first + num_pairs).frame);
        pair next = step_pair(g, f.edge, f.x, f.y, class);
        if (next.fate && !(g->edges[f.edge].c && next.y == DEAD) &&
            !marlin_automaton_can_end(g, f.edge, next.x, next.y))
            next.fate = HOPELESS;
        int32_t at = extend(g, &g->pairs, 1, sizeof(pair));
        if (at < 0) return -1;
        PAIR(g, at) = next;
        num_pairs++;
    }
    begin_set(g);
    for (int32_t i = 0; i < p.count; i++) {
        place at = PLACE(g, p.first + i);
        if (at.state < 0) {
            frame f = FRAME(g, at.frame);
            add_pair(g, f.edge, PAIR(g, base + i), f.parent);
            continue;
        }
        for (int32_t j = g->first_edge[at.state]; j < g->first_edge[at.state + 1]; j++) {
            const marlin_edge *e = &g->edges[j];
            if (e->kind == MARLIN_BYTE && g->class_of[e->a] <= class && class <= g->class_of[e->b])
                add(g, e->target, at.frame);
        }
    }
    g->pairs.count = base;
    int32_t to = end_set(g);
    if (to >= 0) ROW(g, p.row + class) = to;
    return to;
}

void marlin_automaton_forget(grammar *g)
{
    for (int32_t i = 0; i < g->positions.count; i++) free(POSITION(g, i).mask);
    table *tables[] = {&g->frames, &g->places, &g->positions, &g->rows, &g->pairs};
    for (int i = 0; i < 5; i++) {
        free(tables[i]->items);
        *tables[i] = (table){0};
    }
}

void marlin_automaton_begin(grammar *g)
{
    marlin_automaton_forget(g);
    memset(g->frame_heads, 0, sizeof g->frame_heads);
    memset(g->position_heads, 0, sizeof g->position_heads);
    memset(g->start, -1, (size_t)g->num_states * sizeof *g->start);
    g->bytes = 0;
    g->code = MARLIN_OK;
    if (extend(g, &g->frames, 1, sizeof(frame)) < 0) return;
    if (extend(g, &g->positions, 1, sizeof(position)) < 0) return;
    FRAME(g, 0) = (frame){0};
    POSITION(g, DEAD) = (position){.row = -1};
    beginning(g, 0); /* the first set that is made: number ROOT */
}
