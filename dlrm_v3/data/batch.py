"""A batch of requests: what passes from the data to training and inference.

The sequences of a batch have uneven lengths, so they lie one behind the other (jagged). Request b
has the tokens [offsets[b], offsets[b + 1]): its history in order of time, then its candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class RequestBatch(NamedTuple):
    """Requests of one timestamp: B of them, with n tokens, of which C are candidates.

    Attributes:
        users: int32 [B], the users' ids.
        items: int32 [n], the tokens' items.
        actions: int32 [n], the weight of an event of the history (see `ACTION_WEIGHTS`); 0 for
            candidates.
        times: int64 [n], seconds since the stream began; for candidates the time of the request.
        offsets: int32 [B + 1], where each request's tokens begin, and the end.
        targets: int32 [B], number of candidates of each request.
        ratings: float32 [C], the candidates' ratings, which training and evaluation learn from.
        probabilities: float32 [C], the true probability that the label is 1, given all that the
            generator knows; the best possible prediction. NaN where it is not known.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    actions: NDArray[np.int32]
    times: NDArray[np.int64]
    offsets: NDArray[np.int32]
    targets: NDArray[np.int32]
    ratings: NDArray[np.float32]
    probabilities: NDArray[np.float32]
