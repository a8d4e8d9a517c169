/* grammar.c: a grammar: its edges checked and trimmed when it is created, and what its callers ask:
 * where a text leads, and which tokens may follow. */
#include <stdlib.h>
#include <string.h>

#include "common/buffers.h"
#include "common/grammar.h"

#define MAX_STATES (1 << 18)
#define MAX_EDGES (1 << 19)

static int check_edge(const marlin_edge *e, int32_t num_states)
{
    int is_rule = marlin_is_repeat(e) || e->kind == MARLIN_BOTH;
    if (e->source < 0 || e->source >= num_states || e->target < 0 || e->target >= num_states)
        return 0;
    if (is_rule && (e->a < 0 || e->a >= num_states)) return 0;
    if (e->kind == MARLIN_BOTH) return e->b >= 0 && e->b < num_states && (e->c == 0 || e->c == 1);
    if (marlin_is_repeat(e)) return e->b >= 0 && (e->c < 0 || e->b <= e->c);
    if (e->kind == MARLIN_BYTE) return e->a >= 0 && e->a <= e->b && e->b <= 255;
    return e->kind == MARLIN_EMPTY || e->kind == MARLIN_RETURN;
}

/* Copy the edges, by source. */
static int take_edges(grammar *g, const marlin_edge *edges)
{
    g->edges = malloc(((size_t)g->num_edges + 1) * sizeof *g->edges);
    g->first_edge = calloc((size_t)g->num_states + 2, sizeof *g->first_edge);
    g->start = malloc((size_t)g->num_states * sizeof *g->start);
    if (!g->edges || !g->first_edge || !g->start)
        return marlin_fail(MARLIN_ENOMEM, "no memory for a grammar");
    for (int32_t i = 0; i < g->num_edges; i++) {
        if (!check_edge(&edges[i], g->num_states))
            return marlin_fail(MARLIN_EINVAL, "edge %d of a grammar is wrong", i);
        g->first_edge[edges[i].source + 2]++;
    }
    for (int32_t s = 1; s <= g->num_states; s++) g->first_edge[s + 1] += g->first_edge[s];
    for (int32_t i = 0; i < g->num_edges; i++)
        g->edges[g->first_edge[edges[i].source + 1]++] = edges[i];
    return MARLIN_OK;
}

/* What has failed in a call. */
static int failed(const grammar *g)
{
    if (g->code == MARLIN_ENOMEM)
        return marlin_fail(g->code, "the grammar's memory of %lld MiB is full",
                           (long long)(MAX_BYTES >> 20));
    if (g->work > MAX_WORK)
        return marlin_fail(g->code, "the grammar takes more than %d steps to look at", MAX_WORK);
    return marlin_fail(g->code, "the text is at more than %d places of the grammar at once",
                       MAX_PLACES);
}

/* Number the runs of bytes that no edge tells apart. */
static void number_classes(grammar *g)
{
    uint8_t begins[257] = {1};
    for (int32_t i = 0; i < g->num_edges; i++) {
        if (g->edges[i].kind != MARLIN_BYTE) continue;
        begins[g->edges[i].a] = begins[g->edges[i].b + 1] = 1;
    }
    g->num_classes = 0;
    for (int32_t byte = 0; byte < 256; byte++) {
        g->num_classes += begins[byte];
        g->class_of[byte] = (uint8_t)(g->num_classes - 1);
    }
}

/* Whether a text can go from here to its rule's end, as far as `ends` knows of other states. */
static int can_go(const marlin_edge *e, const uint8_t *ends)
{
    if (e->kind == MARLIN_RETURN) return 1;
    if (!ends[e->target]) return 0;
    if (marlin_is_repeat(e)) return e->b == 0 || ends[e->a];
    if (e->kind == MARLIN_BOTH) return ends[e->a] && (e->c || ends[e->b]);
    return 1;
}

/* Take away every edge from which no text leads to an end. Returns whether any was. */
static int trim(grammar *g, uint8_t *ends)
{
    memset(ends, 0, (size_t)g->num_states);
    for (int changed = 1, down = 1; changed; down = !down) {
        changed = 0;
        for (int32_t i = 0; i < g->num_edges; i++) {
            const marlin_edge *e = &g->edges[down ? g->num_edges - 1 - i : i];
            if (ends[e->source] || !can_go(e, ends)) continue;
            ends[e->source] = 1;
            changed = 1;
        }
    }
    int32_t kept = 0, edge = 0;
    for (int32_t s = 0; s < g->num_states; s++) {
        int32_t end = g->first_edge[s + 1];
        g->first_edge[s] = kept;
        for (; edge < end; edge++) {
            marlin_edge e = g->edges[edge];
            if (!can_go(&e, ends)) continue;
            if (marlin_is_repeat(&e) && !ends[e.a]) e.kind = MARLIN_EMPTY;
            g->edges[kept++] = e;
        }
    }
    int32_t before = g->num_edges;
    g->first_edge[g->num_states] = g->num_edges = kept;
    return kept < before;
}

/* Take away pairs of rules that nothing satisfies. Returns whether any was. */
static int drop_empty_pairs(grammar *g)
{
    int32_t dropped = 0;
    for (int32_t i = 0; i < g->num_edges && !g->code; i++) {
        marlin_edge *e = &g->edges[i];
        if (e->kind != MARLIN_BOTH || marlin_automaton_can_end(g, i, BEGINNING, BEGINNING))
            continue;
        e->kind = MARLIN_REPEAT; /* of a rule that trim() knows to have no end: itself */
        e->a = e->source;
        e->b = e->c = 1;
        dropped++;
    }
    return dropped > 0;
}

/* Whether a rule is seen at a glance to be a list of texts: it calls none, and every edge leads to
 * a state of a higher number, or to the rule's end. The arrays have room for all states; `seen` is
 * 0 before and after. */
static int is_list(const grammar *g, int32_t rule, int32_t *queue, uint8_t *seen)
{
    int32_t count = 1;
    int found = 1;
    queue[0] = rule;
    seen[rule] = 1;
    for (int32_t i = 0; i < count && found; i++) {
        for (int32_t j = g->first_edge[queue[i]]; j < g->first_edge[queue[i] + 1]; j++) {
            const marlin_edge *e = &g->edges[j], *next = &g->edges[g->first_edge[e->target]];
            if (e->kind == MARLIN_RETURN) continue;
            int is_end =
                g->first_edge[e->target + 1] == next - g->edges + 1 && next->kind == MARLIN_RETURN;
            if (e->kind != MARLIN_BYTE || (e->target <= e->source && !is_end)) found = 0;
            if (seen[e->target]) continue;
            seen[e->target] = 1;
            queue[count++] = e->target;
        }
    }
    for (int32_t i = 0; i < count; i++) seen[queue[i]] = 0;
    return found;
}

/* Note which pairs are a rule without a list. */
static int find_lists(grammar *g)
{
    int32_t *queue = malloc((size_t)g->num_states * sizeof *queue);
    uint8_t *seen = calloc((size_t)g->num_states, 1);
    for (int32_t i = 0; queue && seen && i < g->num_edges; i++) {
        marlin_edge *e = &g->edges[i];
        if (e->kind == MARLIN_BOTH && e->c && is_list(g, e->b, queue, seen)) e->c = WITHOUT_LIST;
    }
    int code = queue && seen ? MARLIN_OK : marlin_fail(MARLIN_ENOMEM, "no memory for a grammar");
    free(queue);
    free(seen);
    return code;
}

/* Trim until nothing is left that leads nowhere. */
static int prepare(grammar *g)
{
    uint8_t *ends = malloc((size_t)g->num_states);
    if (!ends) return marlin_fail(MARLIN_ENOMEM, "no memory for a grammar");
    do {
        trim(g, ends);
        marlin_automaton_begin(g);
    } while (!g->code && drop_empty_pairs(g));
    int has_end = ends[0];
    free(ends);
    if (g->code) return failed(g);
    if (!has_end) return marlin_fail(MARLIN_EINVAL, "nothing satisfies the grammar");
    int code = find_lists(g);
    marlin_automaton_begin(g);
    return code != MARLIN_OK || !g->code ? code : failed(g);
}

int marlin_grammar_create(const marlin_vocabulary *vocabulary, const marlin_edge *edges,
                          int32_t num_edges, int32_t num_states, marlin_grammar **out)
{
    *out = NULL;
    if (num_states < 1 || num_states > MAX_STATES || num_edges < 1 || num_edges > MAX_EDGES)
        return marlin_fail(MARLIN_EINVAL,
                           "a grammar of %d states and %d edges; it may have %d and %d", num_states,
                           num_edges, MAX_STATES, MAX_EDGES);
    grammar *g = calloc(1, sizeof *g);
    if (!g) return marlin_fail(MARLIN_ENOMEM, "no memory for a grammar");
    g->vocabulary = vocabulary;
    g->num_states = num_states;
    g->num_edges = num_edges;
    int code = take_edges(g, edges);
    if (code == MARLIN_OK) {
        number_classes(g);
        code = prepare(g);
    }
    if (code != MARLIN_OK) {
        marlin_grammar_destroy(g);
        return code;
    }
    *out = g;
    return MARLIN_OK;
}

void marlin_grammar_reset(marlin_grammar *g)
{
    g->work = 0;
    marlin_automaton_begin(g);
}

void marlin_grammar_destroy(marlin_grammar *g)
{
    if (!g) return;
    marlin_automaton_forget(g);
    free(g->edges);
    free(g->first_edge);
    free(g->start);
    free(g);
}

/* ---- what a text may go on with ---- */

/* Whether a call may begin at a position. */
static int begins(grammar *g, int32_t at)
{
    g->code = at < 0 || at >= g->positions.count ? MARLIN_EINVAL : MARLIN_OK;
    g->work = 0;
    g->pairs.count = 0;
    if (g->code) marlin_fail(g->code, "no position of the grammar has number %d", at);
    return !g->code;
}

int32_t marlin_grammar_advance(marlin_grammar *g, int32_t at, const uint8_t *bytes, int64_t count)
{
    if (!begins(g, at)) return g->code;
    for (int64_t i = 0; i < count && at > DEAD; i++) {
        at = marlin_automaton_step(g, at, g->class_of[bytes[i]]);
        g->work = 0;
    }
    return g->code ? failed(g) : at;
}

int marlin_grammar_accepts(marlin_grammar *g, int32_t at)
{
    return begins(g, at) ? POSITION(g, at).accepts : g->code;
}

/* Set the bits of a trie's tokens that may follow a position. */
static void walk(grammar *g, int32_t from, const trie *t, uint32_t *mask)
{
    int32_t at[MAX_TOKEN_BYTES + 1];
    at[0] = from;
    for (int32_t i = 0; i < t->count;) {
        const trie_node *n = &t->nodes[i];
        int32_t class = g->class_of[n->byte], row = POSITION(g, at[n->depth - 1]).row;
        int32_t to = row < 0 ? -1 : ROW(g, row + class);
        if (to < 0) to = marlin_automaton_step(g, at[n->depth - 1], class);
        if (to < 0) return;
        at[n->depth] = to;
        if (to > DEAD)
            for (int32_t token = n->token; token >= 0; token = g->vocabulary->same[token])
                mask[token / 32] |= (uint32_t)1 << token % 32;
        i = to > DEAD ? i + 1 : n->next;
    }
}

int marlin_grammar_mask(marlin_grammar *g, int32_t at, int32_t known, uint32_t *out)
{
    const marlin_vocabulary *v = g->vocabulary;
    if (!begins(g, at)) return g->code;
    if (!POSITION(g, at).mask && known) return 0;
    size_t bytes = (size_t)v->num_words * sizeof(uint32_t);
    if (!POSITION(g, at).mask) {
        uint32_t *mask = g->bytes + (int64_t)bytes > MAX_BYTES ? NULL : calloc(1, bytes);
        if (!mask) {
            g->code = MARLIN_ENOMEM;
            return failed(g);
        }
        const uint32_t *plain = POSITION(g, at).takes_plain ? v->plain : NULL;
        const uint32_t *ends = POSITION(g, at).accepts ? v->ends : NULL;
        for (int32_t i = 0; i < v->num_words; i++)
            mask[i] = (plain ? plain[i] : 0) | (ends ? ends[i] : 0);
        walk(g, at, plain ? &v->rest : &v->all, mask);
        if (g->code) {
            free(mask);
            return failed(g);
        }
        g->bytes += (int64_t)bytes;
        POSITION(g, at).mask = mask;
    }
    memcpy(out, POSITION(g, at).mask, bytes);
    return 1;
}
