/* vocabulary.c: a vocabulary's tokens as a trie of their bytes, made once a model. Knows no
 * grammar but the text of a JSON string, which most tokens are. */
#include <stdlib.h>
#include <string.h>

#include "common/buffers.h"
#include "common/grammar.h"

#define MAX_VOCABULARY (1 << 24)

/* A trie while it grows: children in a list. */
typedef struct {
    int32_t child, sibling, token;
    uint8_t byte;
} link;

typedef struct {
    link *items; /* 0 is the root */
    int32_t count, room;
} links;

/* The length of the UTF-8 character at [at, end), 0 if there is none. One that `end` cuts has as
 * many bytes as there are. */
static int32_t character_bytes(const uint8_t *at, const uint8_t *end)
{
    uint8_t first = at[0];
    if (first < 0x80) return 1;
    int32_t bytes = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    for (int32_t i = 1; i < bytes; i++) {
        if (at + i == end) return i;
        if (at[i] < low || at[i] > high) return 0;
        low = 0x80;
        high = 0xbf;
    }
    return bytes;
}

/* Whether a token is at most PLAIN_CHARACTERS characters of a JSON string, without escapes; its
 * last one may go on in the next token. */
static int is_plain(const uint8_t *at, const uint8_t *end)
{
    for (int32_t i = 0; at < end; i++) {
        int32_t bytes = character_bytes(at, end);
        if (i == PLAIN_CHARACTERS || bytes == 0) return 0;
        if (*at < 0x20 || *at == '"' || *at == '\\') return 0;
        at += bytes;
    }
    return 1;
}

/* The child of a node by a byte, made if it is not there; -1 without memory. */
static int32_t child_of(links *l, int32_t node, uint8_t byte)
{
    int32_t last = -1;
    for (int32_t i = l->items[node].child; i >= 0; i = l->items[i].sibling) {
        if (l->items[i].byte == byte) return i;
        last = i;
    }
    if (l->count == l->room) {
        int32_t room = l->room * 2;
        link *items = realloc(l->items, (size_t)room * sizeof *items);
        if (!items) return -1;
        l->items = items;
        l->room = room;
    }
    int32_t added = l->count++;
    l->items[added] = (link){.child = -1, .sibling = -1, .token = -1, .byte = byte};
    if (last < 0)
        l->items[node].child = added;
    else
        l->items[last].sibling = added;
    return added;
}

/* Lay the nodes out in preorder. Returns 0, or -1 without memory. */
static int lay_out(const links *l, trie *out)
{
    out->nodes = malloc((size_t)l->count * sizeof *out->nodes);
    if (!out->nodes) return -1;
    int32_t node[MAX_TOKEN_BYTES + 1], laid[MAX_TOKEN_BYTES + 1];
    int32_t depth = 1;
    node[1] = l->items[0].child;
    while (depth > 0) {
        int32_t i = node[depth];
        if (i < 0) { /* all of its siblings are laid out: so is its parent */
            depth--;
            if (depth == 0) break;
            out->nodes[laid[depth]].next = out->count;
            node[depth] = l->items[node[depth]].sibling;
            continue;
        }
        laid[depth] = out->count;
        out->nodes[out->count++] = (trie_node){
            .token = l->items[i].token, .depth = (uint16_t)depth, .byte = l->items[i].byte};
        if (depth == MAX_TOKEN_BYTES) return -1; /* no token is so long */
        node[++depth] = l->items[i].child;
    }
    return 0;
}

/* The trie of the tokens that `skipped` does not hold, NULL for all. Returns 0, or -1 without
 * memory. */
static int make_trie(marlin_vocabulary *v, const uint8_t *bytes, const int64_t *starts,
                     const uint32_t *skipped, trie *out)
{
    links l = {malloc(1024 * sizeof *l.items), 1, 1024};
    if (!l.items) return -1;
    l.items[0] = (link){.child = -1, .sibling = -1, .token = -1};
    int failed = 0;
    for (int32_t token = v->size - 1; token >= 0 && !failed; token--) {
        int64_t length = starts[token + 1] - starts[token];
        if (length == 0 || length >= MAX_TOKEN_BYTES) continue;
        if (skipped && (skipped[token / 32] >> token % 32 & 1)) continue;
        int32_t node = 0;
        for (int64_t i = starts[token]; i < starts[token + 1] && node >= 0; i++)
            node = child_of(&l, node, bytes[i]);
        failed = node < 0;
        if (failed) continue;
        v->same[token] = l.items[node].token;
        l.items[node].token = token;
    }
    failed = failed || lay_out(&l, out) != 0;
    free(l.items);
    return failed ? -1 : 0;
}

static int fill(marlin_vocabulary *v, const uint8_t *bytes, const int64_t *starts)
{
    size_t words = (size_t)v->num_words;
    v->same = malloc((size_t)v->size * sizeof *v->same);
    v->ends = calloc(words, sizeof *v->ends);
    v->plain = calloc(words, sizeof *v->plain);
    if (!v->same || !v->ends || !v->plain) return -1;
    memset(v->same, -1, (size_t)v->size * sizeof *v->same);
    for (int32_t token = 0; token < v->size; token++) {
        const uint8_t *at = bytes + starts[token], *end = bytes + starts[token + 1];
        if (at < end && end - at < MAX_TOKEN_BYTES && is_plain(at, end))
            v->plain[token / 32] |= (uint32_t)1 << token % 32;
    }
    /* Tokens of the same bytes are both plain or neither, so that `same` is one list in both. */
    return make_trie(v, bytes, starts, NULL, &v->all) ||
           make_trie(v, bytes, starts, v->plain, &v->rest);
}

int marlin_vocabulary_create(const uint8_t *bytes, const int64_t *starts, int32_t size,
                             const int32_t *ends, int32_t num_ends, marlin_vocabulary **out)
{
    *out = NULL;
    if (size < 1 || size > MAX_VOCABULARY || starts[0] != 0)
        return marlin_fail(MARLIN_EINVAL, "a vocabulary of %d tokens", size);
    for (int32_t i = 0; i < size; i++)
        if (starts[i + 1] < starts[i])
            return marlin_fail(MARLIN_EINVAL, "token %d ends before it begins", i);
    for (int32_t i = 0; i < num_ends; i++)
        if (ends[i] < 0 || ends[i] >= size)
            return marlin_fail(MARLIN_EINVAL, "%d, which ends sequences, is no token", ends[i]);
    marlin_vocabulary *v = calloc(1, sizeof *v);
    if (!v) return marlin_fail(MARLIN_ENOMEM, "no memory for a vocabulary");
    v->size = size;
    v->num_words = (size + 31) / 32;
    if (fill(v, bytes, starts) != 0) {
        marlin_vocabulary_destroy(v);
        return marlin_fail(MARLIN_ENOMEM, "no memory for a vocabulary of %d tokens", size);
    }
    for (int32_t i = 0; i < num_ends; i++) v->ends[ends[i] / 32] |= (uint32_t)1 << ends[i] % 32;
    *out = v;
    return MARLIN_OK;
}

void marlin_vocabulary_destroy(marlin_vocabulary *v)
{
    if (!v) return;
    free(v->same);
    free(v->ends);
    free(v->plain);
    free(v->all.nodes);
    free(v->rest.nodes);
    free(v);
}
