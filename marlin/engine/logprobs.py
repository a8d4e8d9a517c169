"""Log-probabilities of the model's own distribution, from rows of its logits.

Arithmetic on arrays; knows no requests and no device.
"""

import numpy as np

from marlin.engine.request import TokenLogprobs


class Distribution:
    """A copy of one row of logits, taken before the sampling kernels change it.

    Args:
        logits: float32 [vocab_size]; float64 sums keep the error of the normalizer below what
            float32 logits themselves carry.
        num_top: how many of the likeliest tokens of() reports.
    """

    def __init__(self, logits, num_top):
        self._logits = logits.astype(np.float64)
        most = self._logits.max()
        with np.errstate(invalid="ignore"):  # an infinite logit makes NaN, which is passed on
            self._log_sum = most + np.log(np.exp(self._logits - most).sum())
        self._top = tuple(
            (int(token_id), self._logprob(token_id)) for token_id in likeliest(logits, num_top)
        )

    def of(self, token_id):
        """TokenLogprobs of the token that was sampled."""
        return TokenLogprobs(self._logprob(token_id), self._top)

    def _logprob(self, token_id):
        return float(self._logits[token_id] - self._log_sum)


def likeliest(logits, count):
    """Ids of the `count` largest of float [vocab_size], largest first, ties by lower id.

    Returns:
        int64 [count], fewer when the row is shorter or has NaN among them.
    """
    count = min(count, len(logits))
    if count == 0:
        return np.zeros(0, np.int64)
    smallest = -np.partition(-logits, count - 1)[count - 1]
    token_ids = np.flatnonzero(logits >= smallest)  # ascending, which the stable sort keeps
    return token_ids[np.argsort(-logits[token_ids], kind="stable")][:count]
