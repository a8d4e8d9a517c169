"""`--speculative draft` over tiny models: whatever the second model guesses, and whenever, the
tokens are those of no guessing."""

import random
from contextlib import ExitStack, contextmanager

import pytest
from test_speculation import PROMPT, PROMPTS, SAMPLED, VOCAB, answers_and_drafts, read, submit
from tiny_models import (
    random_tensors,
    random_tokens,
    running,
    tiny_config,
    tiny_family_config,
    write_folder,
)

from marlin.engine.draft import MAX_DRAFT_TOKENS
from marlin.engine.draft_model import STATES_A_SEQUENCE, DraftModel
from marlin.engine.draft_pace import MAX_CREDIT_S, Pace, Trust
from marlin.engine.engine import Engine
from marlin.errors import DeviceError

MODES = {"one": {"context": 224}, "batch": {"sequences": 4, "blocks": (80, 16)}}
# Full attention, windows, and states that cannot be cut.
FAMILIES = {"llama": 6, "gemma3_text": 7, "qwen3_5_text": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: path}: the model, one of other weights, and one of each kind of cache."""

    def write(name, config, seed):
        return write_folder(tmp_path_factory.mktemp(name), config, random_tensors(config, seed))

    config = tiny_config()
    found = {"model": write("model", config, 3), "other": write("other", config, 4)}
    for family, seed in FAMILIES.items():
        found[family] = write(family, tiny_family_config(family), seed)
    return found


class PaceOf(Pace):
    """Guesses as many as a test says, and never minds what they cost."""

    def __init__(self, choose):
        super().__init__()
        self._choose = choose

    def lengths(self, trusts, limits, num_rows):
        return [min(self._choose(), limit) for limit in limits]


@contextmanager
def guessing(path, draft_path, choose=lambda: MAX_DRAFT_TOKENS, eos_token_ids=(), **options):
    """An Engine over a model whose guesses are another one's."""
    options = {"context": 224, "drafts": 16, **options}
    states = STATES_A_SEQUENCE * options.get("sequences", 1)
    own = {name: value for name, value in options.items() if name not in ("drafts", "states")}
    with ExitStack() as stack:
        runner = stack.enter_context(running(path, **options))
        small = stack.enter_context(running(draft_path, **own, states=states))
        model = DraftModel(small, runner.model.config.vocab_size)
        model.pace = PaceOf(choose)
        engine = Engine(runner, eos_token_ids, draft_model=model)
        try:
            yield engine
        finally:
            engine.close()


@contextmanager
def plain(path, eos_token_ids=(), **options):
    with running(path, **{"context": 224, **options}) as runner:
        engine = Engine(runner, eos_token_ids)
        try:
            yield engine
        finally:
            engine.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("params", [{}, SAMPLED, {**SAMPLED, "repetition_penalty": 1.3}], ids=str)
def test_a_draft_model_that_is_the_model_is_always_right(folders, mode, params):
    """It draws by the request's own seed: at a temperature, too, no guess is wrong."""
    path = folders["model"]
    with plain(path, **MODES[mode]) as engine:
        alone, _, _ = answers_and_drafts(engine, PROMPTS, **params)
    with guessing(path, path, **MODES[mode]) as engine:
        found, num_drafts, num_right = answers_and_drafts(engine, PROMPTS, **params)
    assert found == alone
    assert num_drafts == num_right > 100


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("draft", ["other", *FAMILIES])
def test_a_draft_model_of_any_kind_that_is_wrong_changes_nothing(folders, mode, draft):
    path = folders["model"]
    with plain(path, **MODES[mode]) as engine:
        alone, _, _ = answers_and_drafts(engine, PROMPTS, **SAMPLED, num_logprobs=2)
    with guessing(path, folders[draft], **MODES[mode]) as engine:
        found, num_drafts, num_right = answers_and_drafts(
            engine, PROMPTS, **SAMPLED, num_logprobs=2
        )
    assert found == alone
    assert num_right < num_drafts and num_drafts > 100


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_5_text"])
@pytest.mark.parametrize("mode", MODES)
def test_caches_of_every_kind_are_cut_back_behind_wrong_guesses(folders, mode, family):
    """Some of the model's own guesses are spoiled, so that what follows begins behind a wrong one:
    the guesses after that are right again, so its windows and states are those of no guess."""
    path, sizes = folders[family], dict(MODES[mode])
    if family == "qwen3_5_text":
        sizes = {"sequences": sizes.get("sequences", 1), "blocks": (80, 16), "states": 60}
    with plain(path, **sizes) as engine:
        alone, _, _ = answers_and_drafts(engine, PROMPTS, **SAMPLED)
    with guessing(path, path, **sizes) as engine:
        spoil(engine)
        found, num_drafts, num_right = answers_and_drafts(engine, PROMPTS, **SAMPLED)
    assert found == alone
    # Of each draft of 7 the fifth guess is wrong, and all before it are right.
    assert num_drafts * 0.5 < num_right < num_drafts


def spoil(engine):
    model = engine._draft_model
    propose = model.propose

    def spoiled(*given):
        found = propose(*given)
        for draft in found.values():
            if len(draft) > 4:
                draft[4] = (draft[4] + 1) % VOCAB
        return found

    model.propose = spoiled


@pytest.mark.parametrize("seed", range(4))
def test_any_mix_of_requests_gets_what_each_gets_alone(folders, seed):
    """Few blocks, so that some are preempted; aborts; prompts that begin alike; any number of
    guesses, of a model that is right or wrong."""
    rng = random.Random(seed)
    draft = rng.choice(("model", "other", "qwen3_5_text"))
    shared = random_tokens(48, VOCAB, seed)
    asked = []
    for i in range(8):
        prompt = shared[: rng.choice((0, 16, 33, 48))] + random_tokens(rng.randint(1, 30), VOCAB, i)
        params = {**SAMPLED, "temperature": rng.choice((0.0, 1.0)), "seed": i}
        params |= {"max_tokens": rng.choice((1, 2, 17, 40))}
        asked.append((prompt, params | rng.choice(({}, {"frequency_penalty": 0.5}))))
    with plain(folders["model"]) as engine:
        alone = [read(submit(engine, prompt, **params)) for prompt, params in asked]
    sizes = rng.choice(({}, {"sequences": 4, "blocks": (rng.choice((9, 14, 40)), 16)}))
    with guessing(
        folders["model"], folders[draft], lambda: rng.randint(0, MAX_DRAFT_TOKENS), **sizes
    ) as engine:
        requests = [submit(engine, prompt, **params) for prompt, params in asked]
        gone = rng.sample(requests, 2)
        for request in gone:
            request.abort()
        for request, whole in zip(requests, alone, strict=True):
            token_ids, _, reason = read(request)
            assert token_ids == whole[0][: len(token_ids)]
            assert (reason == "abort" and request in gone) or (token_ids, [], reason) == whole
        stats = engine.stats()
        assert stats.num_free_kv_blocks == stats.num_kv_blocks
        assert not engine._draft_model._is_broken


@pytest.mark.parametrize("mode", MODES)
def test_a_next_turn_computes_only_its_new_tokens_in_the_draft_model(folders, mode):
    path = folders["model"]
    with guessing(path, path, **MODES[mode]) as engine:
        first = submit(engine, random_tokens(64, VOCAB), max_tokens=30)
        turn = [*random_tokens(64, VOCAB), *read(first)[0], 7, 8]
        counts = counted_tokens(engine._draft_model)
        second = submit(engine, turn, max_tokens=8)
        assert len(read(second)[0]) == 8
    assert second.num_cached_tokens >= 80
    assert sum(counts) <= len(turn) - 80 + 2 * 8


def counted_tokens(model):
    """Tokens of each of the draft model's steps from now on."""
    counts, step = [], model._runner.step

    def counting(chunks):
        counts.append(sum(chunk.num_tokens for chunk in chunks))
        return step(chunks)

    model._runner.step = counting
    return counts


def test_a_long_prompt_holds_up_no_other_requests_steps(folders):
    path = folders["model"]
    with guessing(path, path, sequences=3, blocks=(80, 16)) as engine:
        counts = counted_tokens(engine._draft_model)
        requests = [submit(engine, random_tokens(100, VOCAB, i), seed=i) for i in range(3)]
        assert all(read(request)[2] == "length" for request in requests)
    assert max(counts) <= 32 + 3 * (MAX_DRAFT_TOKENS + 1)


def test_an_end_token_and_the_end_of_the_context_are_where_they_are_without(folders):
    path = folders["model"]
    with plain(path, context=64) as engine:
        whole = read(submit(engine, max_tokens=1000, **SAMPLED))
    end = whole[0][20]
    for eos, most in ((), 1000), ((end,), 1000), ((), 5):
        with plain(path, eos, context=64) as engine:
            alone = read(submit(engine, max_tokens=most, **SAMPLED))
        with guessing(path, path, eos_token_ids=eos, context=64) as engine:
            assert read(submit(engine, max_tokens=most, **SAMPLED)) == alone


@pytest.mark.parametrize("sizes", [(97, 80), (80, 97)], ids=str)
def test_vocabularies_that_are_padded_to_other_lengths_go_together(tmp_path, sizes):
    """Tokens that one of the two does not have are neither guessed nor given to it."""
    paths = []
    for place, size in enumerate(sizes):
        config = tiny_config(vocab_size=size)
        tensors = random_tensors(config, seed=place)
        paths.append(write_folder(tmp_path / str(place), config, tensors))
    prompts = [random_tokens(20, 80, seed) for seed in range(6)]
    params = {**SAMPLED, "max_tokens": 30, "logit_bias": ((min(sizes) - 1, 1.0), (79, 1.0))}
    if sizes[0] > 80:
        params["logit_bias"] += ((sizes[0] - 1, 1.0),)
    with plain(paths[0]) as engine:
        alone, _, _ = answers_and_drafts(engine, prompts, **params)
    with guessing(*paths) as engine:
        found, num_drafts, _ = answers_and_drafts(engine, prompts, **params)
        assert not engine._draft_model._is_broken
    assert found == alone and num_drafts > 0


def test_a_draft_model_that_fails_guesses_nothing_more_and_says_so(folders, caplog):
    path = folders["model"]
    with plain(path) as engine:
        alone = read(submit(engine))
    with guessing(path, path) as engine:

        def fail(chunks):
            raise DeviceError("out of order")

        engine._draft_model._runner.step = fail
        request = submit(engine)
        assert read(request) == alone
        assert request.num_draft_tokens == 0
    assert "guesses nothing any more: out of order" in caplog.text


def paced(token_s, row_s, draft_s, chance, num_steps=2000):
    """(seconds with guesses, without) of so many tokens of one request, by a Pace that is told what
    steps take, and a draft model whose guesses are right by chance."""
    rng, pace = random.Random(5), Pace()
    trust, total_s = Trust(pace.trust), 0.0
    num_tokens = 0
    while num_tokens < num_steps:
        [length] = pace.lengths([trust.value], [MAX_DRAFT_TOKENS], 1)
        for _ in range(length):
            pace.note_drafting(draft_s, True)
        right = 0
        while right < length and rng.random() < chance:
            right += 1
        seconds = token_s + length * row_s
        pace.note_step(1 + length, length, right, seconds, True)
        for one in (trust, pace.trust):
            one.observe(length, right)
        total_s += seconds + length * draft_s
        num_tokens += 1 + right
    return total_s, num_tokens * token_s


@pytest.mark.parametrize("row_s", [0.001, 0.004, 0.018])
@pytest.mark.parametrize("draft_s", [0.001, 0.005, 0.02])
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.6, 0.95])
def test_guessing_never_loses_more_than_its_share_and_gains_where_it_can(chance, draft_s, row_s):
    """Beside steps of 20 ms: 40 seconds of them, of which a fortieth is the first credit."""
    found, without = paced(0.02, row_s, draft_s, chance)
    assert found <= without * 1.03 + MAX_CREDIT_S
    if chance == 0.95 and draft_s == 0.001 and row_s == 0.001:
        assert without / found > 3


def test_a_model_that_is_never_right_is_given_up_before_its_credit_is_spent():
    found, without = paced(0.02, 0.004, 0.005, 0.0)
    assert found - without < 0.03 * without


def test_what_a_draft_model_is_paid_for_is_what_steps_take(folders):
    """The engine tells it of its steps, by which guesses begin at all."""
    path = folders["model"]
    with guessing(path, path) as engine:
        model = engine._draft_model
        model.pace = pace = Pace()
        assert pace.lengths([1.0], [7], 1) == [0]
        assert read(submit(engine, PROMPT, max_tokens=60))[2] == "length"
        assert pace._step_s.at(1) > 0
