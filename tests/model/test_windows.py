"""A window that gives blocks back changes no bit of what is computed.

Every answer, with the logarithms of its probabilities, is compared with that of a cache which keeps
all tokens, one request alone.
"""

import pytest
from test_speculation import answers, answers_and_drafts, know, read, serving, submit
from tiny_models import (
    random_tensors,
    random_tokens,
    tiny_config,
    tiny_gemma3_config,
    write_folder,
)

WINDOW = 24
CONTEXT = 640
# Of a step of 64 tokens, at its most, and of one request: two blocks of the window and two that it
# lies across, and four of the step.
LEAST = 8
MODELS = {
    "gemma3": tiny_gemma3_config(num_layers=3, windows=(WINDOW, None, WINDOW)),
    "mistral": tiny_config(architecture="mistral", windows=(WINDOW,) * 2),
}
LENGTHS = (1, 24, 40, 64, 300)
ASKED = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 72, "num_logprobs": 1}
PROMPTS = [random_tokens(count, 97, seed=count) for count in LENGTHS]

assert know  # a fixture


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """(folder, what each request is answered alone by a cache of all tokens)."""
    config = MODELS[request.param]
    folder = write_folder(tmp_path_factory.mktemp("m"), config, random_tensors(config, seed=3))
    with serving(folder, context=CONTEXT) as engine:
        engine.prefix_cache = "off"
        return folder, answers(engine, PROMPTS, **ASKED)


def check_all_free(engine):
    stats = engine.stats()
    assert stats.num_free_window_blocks == stats.num_window_blocks > 0


def test_one_request_after_another_gets_the_same_bits_from_a_sixth_of_the_blocks(model):
    folder, alone = model
    with serving(folder, blocks=(40, 16), windows=((WINDOW, LEAST),)) as engine:
        assert answers(engine, PROMPTS, **ASKED) == alone
        check_all_free(engine)


@pytest.mark.parametrize(("count", "own", "preempts"), [(160, 60, 0), (25, 16, 1), (160, LEAST, 1)])
def test_requests_side_by_side_get_the_same_bits(model, count, own, preempts):
    """Also where blocks, of all tokens or of the window alone, do not suffice for all of them."""
    folder, alone = model
    sizes = {"blocks": (count, 16), "windows": ((WINDOW, own),)}
    with serving(folder, sequences=len(PROMPTS), **sizes) as engine:
        requests = [submit(engine, p, **{"seed": i} | ASKED) for i, p in enumerate(PROMPTS)]
        assert [read(request) for request in requests] == alone
        assert (sum(request.num_preemptions for request in requests) > 0) == preempts
        check_all_free(engine)


@pytest.mark.parametrize(("right", "count"), [(2, 60), (3, 12), (100, 12)])
def test_guesses_that_were_wrong_have_given_nothing_back(model, know, right, count):
    folder, alone = model
    know([token_ids for token_ids, _, _ in alone[::2]], right)
    sizes = {"blocks": (160, 16), "windows": ((WINDOW, count),), "drafts": 16}
    with serving(folder, sequences=len(PROMPTS), **sizes) as engine:
        found, num_drafts, num_right = answers_and_drafts(engine, PROMPTS, **ASKED)
        assert found == alone and 0 < num_right and (right == 100 or num_right < num_drafts)
        check_all_free(engine)


@pytest.mark.parametrize("count", [24, 200])
def test_a_conversation_goes_on_after_what_its_last_turn_left(model, count):
    """And a choice more begins at the prompt's end, whatever the answer before it passed by."""
    folder, _ = model
    turns = [random_tokens(100, 97, seed) for seed in range(3)]
    expected, found, cached = [], [], []
    for results, sizes in (
        (expected, {"context": CONTEXT}),
        (found, {"blocks": (60, 16), "windows": ((WINDOW, count),)}),
    ):
        with serving(folder, **sizes) as engine:
            if results is expected:
                engine.prefix_cache = "off"
            prompt = []
            for turn in turns:
                prompt = prompt + turn
                for seed in (1, 2):
                    request = submit(engine, prompt, **ASKED | {"seed": seed, "max_tokens": 40})
                    results.append(read(request))
                    cached.append(request.num_cached_tokens)
                prompt = prompt + results[-1][0]
    assert found == expected
    # A turn begins at the last full block of the 139, or 279, tokens computed before it; the choice
    # more at that of its prompt of 100, 240 or 380 tokens.
    assert cached == [0] * 6 + [0, 96, 128, 224, 272, 368]


def test_a_shared_beginning_that_a_window_lost_is_computed_once_more_and_then_kept(model):
    folder, _ = model
    system = random_tokens(200, 97, seed=7)
    prompts = [system + random_tokens(200, 97, seed) for seed in range(20, 23)]
    with serving(folder, context=CONTEXT) as engine:
        engine.prefix_cache = "off"
        expected = [read(submit(engine, p, max_tokens=9)) for p in prompts]
    with serving(folder, blocks=(120, 16), windows=((WINDOW, 10),)) as engine:
        requests = []
        for prompt, answer in zip(prompts, expected, strict=True):
            requests.append(submit(engine, prompt, max_tokens=9))
            assert read(requests[-1]) == answer
    assert [request.num_cached_tokens for request in requests] == [0, 0, 192]
