"""How a request's sampling parameters reach the sampling kernels. The arithmetic is theirs."""

import numpy as np

from marlin.device import abi

SAMPLE_ROW = abi.PARAMS["SampleRow"]
PENALTY_ENTRY = abi.PARAMS["PenaltyEntry"]


def fill_sample_rows(rows, request):
    """Write the SampleRows of a request's next tokens.

    Args:
        rows: SAMPLE_ROW [count], for the next token, the one after it, ...
        request: Request; a draw depends on its seed and on how many tokens there are before it.
    """
    params, row = request.params, rows[0]
    row["temperature"] = params.temperature
    row["top_p"] = params.top_p
    row["min_p"] = params.min_p
    row["top_k"] = params.top_k
    row["seed_low"] = request.seed & 0xFFFFFFFF
    row["seed_high"] = request.seed >> 32 & 0xFFFFFFFF
    row["position"] = request.num_tokens
    row["frequency_penalty"] = params.frequency_penalty
    row["presence_penalty"] = params.presence_penalty
    row["repetition_penalty"] = params.repetition_penalty
    if len(rows) > 1:
        rows[1:] = row
        rows["position"] += np.arange(len(rows), dtype=rows["position"].dtype)


def penalty_entries(request, draft_token_ids=()):
    """The tokens whose logits the request's penalties and biases change, each token once.

    Args:
        draft_token_ids: tokens taken for output after the request's own.

    Returns:
        PENALTY_ENTRY [any]; empty when nothing is set. num_outputs counts a token's occurrences in
        the output; a token of the prompt alone has 0, and matters to the repetition penalty only;
        a token that is in neither has -1, and its bias alone.
    """
    seen_ids, num_outputs = _seen_tokens(request, draft_token_ids)
    biases = request.params.logit_bias
    if not biases:
        entries = np.zeros(len(seen_ids), PENALTY_ENTRY)
        entries["token_id"], entries["num_outputs"] = seen_ids, num_outputs
        return entries
    biased_ids = np.array([token_id for token_id, _ in biases], np.int32)
    token_ids = np.union1d(seen_ids, biased_ids)
    entries = np.zeros(len(token_ids), PENALTY_ENTRY)
    entries["token_id"] = token_ids
    entries["num_outputs"] = -1
    entries["num_outputs"][np.searchsorted(token_ids, seen_ids)] = num_outputs
    entries["bias"][np.searchsorted(token_ids, biased_ids)] = [bias for _, bias in biases]
    return entries


def _seen_tokens(request, draft_token_ids):
    """(token ids, occurrences in the output) that the request's penalties look at."""
    params = request.params
    penalized = params.frequency_penalty or params.presence_penalty
    repeats = params.repetition_penalty != 1.0
    if not penalized and not repeats:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    output = [*request.output_token_ids, *draft_token_ids]
    outputs, counts = np.unique(np.asarray(output, np.int32), return_counts=True)
    if not repeats:
        return outputs, counts
    prompt_only = np.setdiff1d(np.asarray(request.prompt_token_ids, np.int32), outputs)
    none = np.zeros(len(prompt_only), counts.dtype)
    return np.concatenate([outputs, prompt_only]), np.concatenate([counts, none])
