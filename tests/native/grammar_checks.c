/* grammar_checks.c: grammars through marlin.h: what they take, what is refused, and automata at
 * random, whose masks must say of every token what its bytes say one by one. */
#include <stdlib.h>
#include <string.h>

#include "cases.h"

#define NUM_TOKENS 300
#define MAX_RANDOM_EDGES 60

static uint64_t random_state = 7;

static int32_t random_below(int32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((random_state >> 33) % (uint64_t)limit);
}

/* Tokens 0 to 255 are bytes, the others random texts of a few letters and quotes; token 5 is none,
 * and ends sequences. */
static marlin_vocabulary *make_vocabulary(uint8_t *bytes, int64_t *starts)
{
    static const char letters[] = "ab\"\\,\xc3\xa4{";
    starts[0] = 0;
    for (int32_t t = 0; t < NUM_TOKENS; t++) {
        int64_t at = starts[t];
        if (t < 256 && t != 5) bytes[at++] = (uint8_t)t;
        for (int32_t i = random_below(5); t >= 256 && i >= 0; i--)
            bytes[at++] = (uint8_t)letters[random_below(sizeof letters - 1)];
        starts[t + 1] = at;
    }
    marlin_vocabulary *v = NULL;
    int32_t end = 5;
    marlin_vocabulary_create(bytes, starts, NUM_TOKENS, &end, 1, &v);
    return v;
}

static marlin_edge random_edge(int32_t num_states)
{
    marlin_edge e = {random_below(num_states), random_below(9) % 6, 0, 0, 0,
                     random_below(num_states)};
    if (e.kind == MARLIN_BYTE) {
        e.a = "ab\",{"[random_below(5)];
        e.b = e.a + random_below(3);
    } else {
        e.a = random_below(num_states);
        e.b = e.kind == MARLIN_BOTH ? random_below(num_states) : random_below(3);
        e.c = e.kind == MARLIN_BOTH ? random_below(2)
              : random_below(4)     ? e.b + random_below(3)
                                    : -1;
    }
    if (e.kind == MARLIN_TEXT) e.kind = MARLIN_REPEAT; /* only of a rule that is one */
    return e;
}

/* Whether a position's mask is what advance() says of each token. */
static bool mask_is_right(marlin_grammar *g, int32_t at, const uint8_t *bytes,
                          const int64_t *starts)
{
    uint32_t mask[(NUM_TOKENS + 31) / 32];
    int code = marlin_grammar_mask(g, at, 0, mask);
    if (code < 0) return code == MARLIN_EINVAL || code == MARLIN_ENOMEM;
    for (int32_t t = 0; t < NUM_TOKENS; t++) {
        int64_t length = starts[t + 1] - starts[t];
        int32_t to = marlin_grammar_advance(g, at, bytes + starts[t], length);
        bool expected = length > 0 ? to > 0 : marlin_grammar_accepts(g, at) == 1;
        if (to >= 0 && expected != (mask[t / 32] >> t % 32 & 1)) return false;
    }
    return true;
}

static void check_random_automata(const marlin_vocabulary *v, const uint8_t *bytes,
                                  const int64_t *starts)
{
    int num_made = 0, num_wrong = 0;
    for (int i = 0; i < 1500; i++) {
        marlin_edge edges[MAX_RANDOM_EDGES];
        int32_t num_states = 2 + random_below(12), num_edges = 4 + random_below(40);
        for (int32_t e = 0; e < num_edges; e++) edges[e] = random_edge(num_states);
        edges[num_edges++] = (marlin_edge){num_states - 1, MARLIN_RETURN, 0, 0, 0, 0};
        marlin_grammar *g = NULL;
        if (marlin_grammar_create(v, edges, num_edges, num_states, &g) != MARLIN_OK) continue;
        num_made++;
        int32_t at = 1;
        for (int step = 0; step < 4 && at > 0; step++) {
            num_wrong += !mask_is_right(g, at, bytes, starts);
            uint8_t byte = (uint8_t)"ab\",{"[random_below(5)];
            at = marlin_grammar_advance(g, at, &byte, 1);
            if (step == 2) {
                marlin_grammar_reset(g);
                at = 1;
            }
        }
        marlin_grammar_destroy(g);
    }
    check(num_made > 100, "%d of 1500 random automata take something", num_made);
    check(num_wrong == 0, "masks of random automata are what their bytes say (%d wrong)",
          num_wrong);
}

/* A quoted string of letters, quotes escaped: its tokens are looked at once a vocabulary. */
static void check_text(const marlin_vocabulary *v, const uint8_t *bytes, const int64_t *starts)
{
    static const marlin_edge edges[] = {
        {0, MARLIN_BYTE, '"', '"', 0, 2},    {2, MARLIN_TEXT, 4, 0, -1, 3},
        {3, MARLIN_BYTE, '"', '"', 0, 1},    {1, MARLIN_RETURN, 0, 0, 0, 1},
        {4, MARLIN_BYTE, 0x20, 0x21, 0, 5},  {4, MARLIN_BYTE, 0x23, 0x5b, 0, 5},
        {4, MARLIN_BYTE, 0x5d, 0x7f, 0, 5},  {4, MARLIN_BYTE, 0xc2, 0xdf, 0, 6},
        {6, MARLIN_BYTE, 0x80, 0xbf, 0, 5},  {4, MARLIN_BYTE, '\\', '\\', 0, 7},
        {7, MARLIN_BYTE, '"', '"', 0, 5},    {5, MARLIN_RETURN, 0, 0, 0, 5},
        {4, MARLIN_BYTE, 0xe0, 0xe0, 0, 8},  {8, MARLIN_BYTE, 0xa0, 0xbf, 0, 6},
        {4, MARLIN_BYTE, 0xe1, 0xec, 0, 9},  {9, MARLIN_BYTE, 0x80, 0xbf, 0, 6},
        {4, MARLIN_BYTE, 0xed, 0xed, 0, 10}, {10, MARLIN_BYTE, 0x80, 0x9f, 0, 6},
        {4, MARLIN_BYTE, 0xee, 0xef, 0, 9},  {4, MARLIN_BYTE, 0xf0, 0xf0, 0, 11},
        {11, MARLIN_BYTE, 0x90, 0xbf, 0, 9}, {4, MARLIN_BYTE, 0xf1, 0xf3, 0, 12},
        {12, MARLIN_BYTE, 0x80, 0xbf, 0, 9}, {4, MARLIN_BYTE, 0xf4, 0xf4, 0, 13},
        {13, MARLIN_BYTE, 0x80, 0x8f, 0, 9}};
    marlin_grammar *g = NULL;
    int code = marlin_grammar_create(v, edges, sizeof edges / sizeof *edges, 14, &g);
    if (!check(code == MARLIN_OK, "a grammar of strings: %s", marlin_last_error())) return;
    check(mask_is_right(g, 1, bytes, starts), "before a string");
    int32_t inside = marlin_grammar_advance(g, 1, (const uint8_t *)"\"a\xc3", 3);
    check(mask_is_right(g, inside, bytes, starts), "within a character of a string");
    inside = marlin_grammar_advance(g, inside, (const uint8_t *)"\xa4", 1);
    check(mask_is_right(g, inside, bytes, starts), "within a string");
    int32_t end = marlin_grammar_advance(g, inside, (const uint8_t *)"\\\"\"", 3);
    uint32_t mask[(NUM_TOKENS + 31) / 32], known[(NUM_TOKENS + 31) / 32];
    check(marlin_grammar_mask(g, end, 1, known) == 0, "what was not asked is not known");
    check(marlin_grammar_mask(g, end, 0, mask) == 1 && mask[0] == 1 << 5, "after it the end alone");
    check(marlin_grammar_mask(g, end, 1, known) == 1 && !memcmp(mask, known, sizeof mask),
          "and then it is known");
    check(marlin_grammar_advance(g, 99999, NULL, 0) == MARLIN_EINVAL, "position 99999 is refused");
    check(marlin_grammar_mask(g, -1, 0, mask) == MARLIN_EINVAL, "position -1 is refused");
    marlin_grammar_destroy(g);
}

static void check_refusals(const marlin_vocabulary *v)
{
    static const marlin_edge good[2] = {{0, MARLIN_BYTE, 'a', 'b', 0, 1},
                                        {1, MARLIN_RETURN, 0, 0, 0, 1}};
    static const marlin_edge wrong[] = {{2, MARLIN_BYTE, 'a', 'b', 0, 1},
                                        {-1, MARLIN_BYTE, 'a', 'b', 0, 1},
                                        {0, MARLIN_BYTE, 'a', 'b', 0, 2},
                                        {0, MARLIN_BYTE, 'a', 'b', 0, -1},
                                        {0, MARLIN_BYTE, 'b', 'a', 0, 1},
                                        {0, MARLIN_BYTE, 0, 256, 0, 1},
                                        {0, MARLIN_BYTE, -1, 4, 0, 1},
                                        {0, 6, 0, 0, 0, 1},
                                        {0, -1, 0, 0, 0, 1},
                                        {0, MARLIN_REPEAT, 2, 1, 1, 1},
                                        {0, MARLIN_REPEAT, -1, 1, 1, 1},
                                        {0, MARLIN_REPEAT, 1, 2, 1, 1},
                                        {0, MARLIN_TEXT, 1, -1, 1, 1},
                                        {0, MARLIN_BOTH, 0, 2, 0, 1},
                                        {0, MARLIN_BOTH, 0, 1, 2, 1},
                                        {INT32_MAX, MARLIN_EMPTY, 0, 0, 0, 1},
                                        {0, MARLIN_EMPTY, 0, 0, 0, INT32_MIN}};
    marlin_grammar *g = NULL;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        marlin_edge edges[3] = {good[0], good[1], wrong[i]};
        check(marlin_grammar_create(v, edges, 3, 2, &g) == MARLIN_EINVAL && !g,
              "wrong edge %d is refused", (int)i);
    }
    check(marlin_grammar_create(v, good, 1, 2, &g) == MARLIN_EINVAL,
          "nothing that ends is refused");
    check(marlin_grammar_create(v, good, 2, 1 << 30, &g) == MARLIN_EINVAL,
          "2^30 states are refused");
    /* Itself, and then itself: places without end. */
    marlin_edge endless[4] = {{0, MARLIN_REPEAT, 0, 1, 1, 2},
                              {2, MARLIN_BYTE, 'a', 'a', 0, 1},
                              {0, MARLIN_BYTE, 'b', 'b', 0, 1},
                              {1, MARLIN_RETURN, 0, 0, 0, 1}};
    int code = marlin_grammar_create(v, endless, 4, 3, &g);
    check(code == MARLIN_OK || code == MARLIN_EINVAL, "left recursion ends");
    marlin_grammar_destroy(g);
    marlin_grammar_destroy(NULL);
    marlin_vocabulary *other = NULL;
    int32_t end = 2;
    int64_t backwards[3] = {0, 2, 1}, two[3] = {0, 1, 2};
    const uint8_t *text = (const uint8_t *)"ab";
    check(marlin_vocabulary_create(text, backwards, 2, NULL, 0, &other) == MARLIN_EINVAL,
          "tokens that end before they begin are refused");
    check(marlin_vocabulary_create(text, two, 2, &end, 1, &other) == MARLIN_EINVAL,
          "an end that is no token is refused");
    check(marlin_vocabulary_create(text, two, 0, NULL, 0, &other) == MARLIN_EINVAL,
          "no tokens are refused");
    marlin_vocabulary_destroy(NULL);
}

void check_grammars(void)
{
    static uint8_t bytes[NUM_TOKENS * 6];
    static int64_t starts[NUM_TOKENS + 1];
    marlin_vocabulary *v = make_vocabulary(bytes, starts);
    if (!check(v != NULL, "a vocabulary: %s", marlin_last_error())) return;
    check_text(v, bytes, starts);
    check_refusals(v);
    check_random_automata(v, bytes, starts);
    marlin_vocabulary_destroy(v);
}
