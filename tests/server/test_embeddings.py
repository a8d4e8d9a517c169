"""/v1/embeddings, /v1/rerank and /v2/rerank over HTTP, of made-up hidden states."""

import base64
import json
import threading

import numpy as np
import openai
import pytest
from clients import CLIENT_TIMEOUT_S, MODEL, chat_body, completion_body, request_bytes
from fakes import FakeEngine
from worker_processes import until

from marlin.engine.mock import STATE_DIM
from marlin.models.pooling import Pooling

EMBEDDINGS, RERANK, RERANK_2 = "/v1/embeddings", "/v1/rerank", "/v2/rerank"


@pytest.fixture
def embedder(start_server):
    return start_server(pooling=Pooling("mean", is_declared=True), generates=False)


@pytest.fixture
def reranker(start_server):
    return start_server(pooling=Pooling("rank"))


def embed(server, content="hello", **more):
    body = {"model": MODEL, "input": content, **more}
    with server.connect() as client:
        return client.ask("POST", EMBEDDINGS, body)


def rerank(server, path=RERANK, **more):
    body = {"model": MODEL, "query": "q", "documents": ["a", "bb", "c"], **more}
    with server.connect() as client:
        return client.ask("POST", path, body)


def vectors(answer):
    assert answer.status == 200, answer.body
    data = answer.json()["data"]
    assert [(item["object"], item["index"]) for item in data] == [
        ("embedding", index) for index in range(len(data))
    ]
    return [np.array(item["embedding"], np.float32) for item in data]


def test_an_answer_has_a_unit_vector_for_each_text_and_counts_their_tokens(embedder):
    answer = embed(embedder, ["hello", "ab"], user="me")
    first, second = vectors(answer)
    assert first.shape == second.shape == (STATE_DIM,)
    assert abs(np.linalg.norm(first) - 1) < 1e-6 and not np.array_equal(first, second)
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", MODEL)
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


def test_text_and_tokens_alone_and_in_arrays_are_the_same(embedder):
    ids = list(b"hello")
    found = [vectors(embed(embedder, given))[0] for given in ("hello", ["hello"], ids, [ids])]
    assert len({vector.tobytes() for vector in found}) == 1


def test_base64_is_the_same_float32_values(embedder):
    plain, encoded = (
        embed(embedder, ["a", "b"]),
        embed(embedder, ["a", "b"], encoding_format="base64"),
    )
    decoded = [
        np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in encoded.json()["data"]
    ]
    for vector, same in zip(vectors(plain), decoded, strict=True):
        assert vector.tobytes() == same.tobytes()


def test_dimensions_cut_a_vector_and_make_it_of_length_1_again(embedder):
    (whole,), (cut,) = vectors(embed(embedder)), vectors(embed(embedder, dimensions=10))
    assert np.abs(cut - whole[:10] / np.linalg.norm(whole[:10])).max() < 1e-6
    (same,) = vectors(embed(embedder, dimensions=STATE_DIM))
    assert same.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["a", 7]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [1, -1]}, "input[1]"),
        ({"input": [[1, 2.5]]}, "input[0][1]"),
        ({"input": [[1, 10**6]]}, "input[0][1]"),
        ({"input": ""}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": STATE_DIM + 1}, "dimensions"),
        ({"input": "a", "dimensions": True}, "dimensions"),
        ({"input": "a", "dimension": 3}, "dimension"),
        ({"input": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate": "END"}, "truncate"),
        ({"input": "a", "normalize": False}, "normalize"),
        ({"input": "a", "user": 7}, "user"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(embedder, body, param):
    with embedder.connect() as client:
        answer = client.ask("POST", EMBEDDINGS, {"model": MODEL, **body})
    assert (answer.status, answer.error["param"]) == (422, param), answer.body
    assert answer.error["message"].startswith(param)


def test_a_missing_input_another_model_and_a_bad_body_are_told_apart(embedder):
    with embedder.connect() as client:
        missing = client.ask("POST", EMBEDDINGS, {"model": MODEL})
        other = client.ask("POST", EMBEDDINGS, {"model": "other", "input": "a"})
        broken = client.ask("POST", EMBEDDINGS, b"{")
        method = client.ask("GET", EMBEDDINGS)
    assert (missing.status, missing.error["code"]) == (422, "missing_required_parameter")
    assert (other.status, other.error["code"]) == (404, "model_not_found")
    assert (broken.status, broken.error["code"]) == (400, "invalid_json")
    assert (method.status, method.headers["allow"]) == (405, "POST")


def test_a_text_longer_than_the_context_is_named_with_both_numbers(start_server):
    server = start_server(FakeEngine(max_context_tokens=10), pooling=Pooling("mean"))
    assert len(vectors(embed(server, ["x" * 10]))) == 1
    answer = embed(server, ["x", "y" * 11])
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert answer.error["message"] == "input[1] has 11 tokens; a text may have 10"


def test_more_texts_than_are_taken_are_refused(start_server):
    server = start_server(pooling=Pooling("mean"), num_inputs=3)
    assert len(vectors(embed(server, ["a"] * 3))) == 3
    answer = embed(server, ["a"] * 4)
    assert (answer.status, answer.error["param"]) == (422, "input")
    assert answer.error["message"] == "input may have 3 items, got 4"


def test_a_model_that_only_embeds_refuses_to_generate_by_name(embedder):
    with embedder.connect() as client:
        completion = client.ask("POST", "/v1/completions", completion_body())
        chat = client.ask("POST", "/v1/chat/completions", chat_body())
        card = client.ask("GET", f"/v1/models/{MODEL}").json()
    for answer in (completion, chat):
        assert (answer.status, answer.error["code"]) == (400, "not_supported_by_model")
        assert "makes embeddings, and generates no text" in answer.error["message"]
    offered = card["capabilities"]
    assert offered["embeddings"] is True
    assert not any(offered[name] for name in ("completions", "chat_completions", "rerank"))


def test_a_model_that_only_generates_refuses_the_others_by_name(start_server):
    server = start_server()
    for answer in (embed(server), rerank(server)):
        assert (answer.status, answer.error["code"]) == (400, "not_supported_by_model")
        assert "--pooling" in answer.error["message"]


def test_a_model_that_does_both_generates_and_embeds(start_server):
    server = start_server(pooling=Pooling("mean"))
    assert embed(server).status == 200
    with server.connect() as client:
        assert client.ask("POST", "/v1/completions", completion_body()).status == 200


def test_the_official_client_gets_the_same_values_by_its_default(embedder):
    with openai.OpenAI(base_url=embedder.base_url, api_key="-") as client:
        found = client.embeddings.create(model=MODEL, input=["a", "b"], dimensions=5)
        plain = client.embeddings.create(
            model=MODEL, input=["a", "b"], dimensions=5, encoding_format="float"
        )
    assert [len(item.embedding) for item in found.data] == [5, 5]
    assert np.allclose([i.embedding for i in found.data], [i.embedding for i in plain.data])
    assert found.usage.prompt_tokens == 2


class HeldEngine(FakeEngine):
    """Takes texts and gives nothing back until they are aborted."""

    def _pool(self, request):
        self.requests.append(request)
        self.submitted.release()
        while not request.aborted:
            request._aborted.wait(CLIENT_TIMEOUT_S)
        self.aborted.release()
        return "abort"


def test_a_client_that_leaves_and_a_time_out_end_all_texts(start_server):
    engine = HeldEngine()
    server = start_server(engine, pooling=Pooling("mean"), options={"timeout_s": "0.5"})
    answer = embed(server, ["a", "b"])
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    assert all(engine.aborted.acquire(timeout=CLIENT_TIMEOUT_S) for _ in range(2))
    with server.connect() as client:
        body = {"model": MODEL, "input": ["a", "b"]}
        client.send(request_bytes("POST", EMBEDDINGS, body))
        for _ in range(4):
            assert engine.submitted.acquire(timeout=CLIENT_TIMEOUT_S)
    assert all(engine.aborted.acquire(timeout=CLIENT_TIMEOUT_S) for _ in range(2))
    server.wait_until_idle()


def test_requests_for_vectors_wait_for_a_slot_like_others(start_server):
    engine = HeldEngine()
    server = start_server(
        engine, pooling=Pooling("mean"), options={"max_concurrent_requests": "1"}, queue_factor=0
    )
    first = threading.Thread(target=embed, args=(server,))
    first.start()
    assert engine.submitted.acquire(timeout=CLIENT_TIMEOUT_S)
    refused = embed(server)
    assert (refused.status, refused.error["code"]) == (503, "server_overloaded")
    engine.requests[0].abort()
    first.join(CLIENT_TIMEOUT_S)


def test_prompt_tokens_and_the_endpoint_are_counted(embedder):
    embed(embedder, ["hello", "ab"])
    embedder.wait_until_idle()
    with embedder.connect() as client:
        page = client.ask("GET", "/metrics", headers=["Accept: text/plain"]).body.decode()
    assert 'endpoint="/v1/embeddings",status="200"} 1' in page
    assert "prompt_tokens_total 7" in page


def test_documents_are_ranked_by_their_scores_and_named_by_their_places(reranker):
    answer = rerank(reranker, documents=["a", {"text": "bb"}, "c"], return_documents=True)
    assert answer.status == 200, answer.body
    body = answer.json()
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)
    texts = {result["index"]: result["document"]["text"] for result in body["results"]}
    assert texts == {0: "a", 1: "bb", 2: "c"}
    assert body["model"] == MODEL and body["usage"]["prompt_tokens"] > 900


def test_a_score_depends_on_its_document_alone_and_top_n_keeps_the_best(reranker):
    whole = rerank(reranker).json()["results"]
    assert rerank(reranker, top_n=2).json()["results"] == whole[:2]
    (alone,) = rerank(reranker, documents=["bb"]).json()["results"]
    assert alone["relevance_score"] == next(r for r in whole if r["index"] == 1)["relevance_score"]
    assert rerank(reranker, top_n=9).json()["results"] == whole
    other = rerank(reranker, instruction="Find a rhyme").json()["results"]
    assert other != whole and "document" not in whole[0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", 7]}, "documents[1]"),
        ({"documents": [{"text": 7}]}, "documents[0].text"),
        ({"documents": [{"text": "a", "title": "b"}]}, "documents[0].title"),
        ({"query": 7}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"max_tokens_per_doc": 7}, "max_tokens_per_doc"),
        ({"instruction": 7}, "instruction"),
        ({"truncate_prompt_tokens": 7}, "truncate_prompt_tokens"),
    ],
)
@pytest.mark.parametrize("path", [RERANK, RERANK_2, "/rerank"])
def test_what_cannot_be_ranked_is_refused_by_its_name(reranker, path, body, param):
    answer = rerank(reranker, path, **body)
    assert (answer.status, answer.error["param"]) == (422, param), answer.body


def test_coheres_errors_have_their_message_where_its_clients_read_it(reranker):
    own, other = rerank(reranker, RERANK_2, top_n=0).json(), rerank(reranker, top_n=0).json()
    assert own["message"] == own["error"]["message"] and "message" not in other
    paths = RERANK, RERANK_2, "/rerank"
    whole = [rerank(reranker, path).json()["results"] for path in paths]
    assert whole[0] == whole[1] == whole[2]


def test_the_largest_vectors_are_counted_in_the_memory_for_bodies(embedder):
    answer = embed(embedder, ["a"] * 500)
    assert len(json.loads(answer.body)["data"]) == 500
    budget = embedder.http_server.body_budget  # given back once the answer is out
    until(lambda: budget.used_bytes == 0, "no room is given back")
