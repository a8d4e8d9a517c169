"""How a request's sampling parameters reach the sampling kernels. The arithmetic is theirs."""

import numpy as np

from marlin.device import abi

SAMPLE_ROW = abi.PARAMS["SampleRow"]
PENALTY_ENTRY = abi.PARAMS["PenaltyEntry"]


def fill_sample_row(row, request):
    """Write one SampleRow for the request's next token.

    Args:
        row: 0-d view of dtype SAMPLE_ROW.
        request: Request; the draw depends on its seed and on how many tokens it has.
    """
    params = request.params
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


def penalty_entries(request):
    """The tokens that the request's penalties change.

    Returns:
        PENALTY_ENTRY [any]; empty when no penalty is set. num_outputs counts a token's occurrences
        in the output; a token of the prompt alone has 0, and matters to the repetition penalty
        only.
    """
    params = request.params
    penalized = params.frequency_penalty or params.presence_penalty
    repeats = params.repetition_penalty != 1.0
    if not penalized and not repeats:
        return np.zeros(0, PENALTY_ENTRY)
    outputs, counts = np.unique(np.asarray(request.output_token_ids, np.int32), return_counts=True)
    token_ids, num_outputs = outputs, counts
    if repeats:
        prompt_only = np.setdiff1d(np.asarray(request.prompt_token_ids, np.int32), outputs)
        token_ids = np.concatenate([outputs, prompt_only])
        num_outputs = np.concatenate([counts, np.zeros(len(prompt_only), counts.dtype)])
    entries = np.zeros(len(token_ids), PENALTY_ENTRY)
    entries["token_id"], entries["num_outputs"] = token_ids, num_outputs
    return entries
