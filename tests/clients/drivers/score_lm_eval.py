"""lm-eval's log-likelihoods of continuations, by its model for servers of completions."""

import json
import os
import urllib.request

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

ROOT_URL, MODEL = os.environ["MARLIN_ROOT_URL"], os.environ["MARLIN_MODEL"]
PAIRS = json.loads(os.environ["MARLIN_PAIRS"])


def tokens(text):
    body = json.dumps({"content": text, "add_special": False}).encode()
    asked = urllib.request.Request(
        f"{ROOT_URL}/tokenize", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)["tokens"]


class Served(LocalCompletionsAPI):
    """Its tokenizer is the server's: a download would be another."""

    def tok_encode(self, string, *_, **__):
        texts = [string] if isinstance(string, str) else string
        found = [tokens(text) for text in texts]
        return found[0] if isinstance(string, str) else found


model = Served(
    base_url=f"{ROOT_URL}/v1/completions",
    model=MODEL,
    tokenizer_backend=None,
    tokenized_requests=True,
    max_length=512,
    batch_size=2,
    max_retries=1,
)
# It takes no tokenizer for one that sends token ids, unless it has loaded it itself.
model.tokenizer, model.tokenized_requests = tokens, True
requests = [Instance("loglikelihood", {}, tuple(pair), index) for index, pair in enumerate(PAIRS)]
for pair, (logprob, is_greedy) in zip(PAIRS, model.loglikelihood(requests), strict=True):
    print(json.dumps({"check": pair[1], "logprob": logprob, "greedy": is_greedy}), flush=True)
