"""What a batch of requests gets: one call of the scorer, or a reason for each request that is bad.

Independent of Triton, whose side is `backend_model`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Union

import numpy as np
from numpy.typing import NDArray

from serving.scorer import Scorer
from serving.triton.model_config import DENSE, IDS, PACKED_IDS, RAW_DENSE, RAW_VALUES, WEIGHTS

FloatArray = NDArray[np.float32]
Request = Mapping[str, NDArray[Any]]
Answer = Union[FloatArray, ValueError]

# The inputs of each form of a request, in the order of the arguments of the scorer's method.
_FORMS: dict[tuple[str, ...], Callable[[Scorer], Callable[..., FloatArray]]] = {
    (DENSE, IDS): lambda scorer: scorer.score,
    (DENSE, PACKED_IDS): lambda scorer: scorer.score_packed,
    (RAW_DENSE, RAW_VALUES): lambda scorer: scorer.score_raw,
    (DENSE, IDS, WEIGHTS): lambda scorer: scorer.score,
    (RAW_DENSE, RAW_VALUES, WEIGHTS): lambda scorer: scorer.score_raw,
}
_FORM_OF = {frozenset(names): names for names in _FORMS}


def answer(scorer: Scorer, requests: Sequence[Request]) -> list[Answer]:
    """Scores the samples of several requests, together where they have the same form.

    A request that the scorer refuses costs the others of its batch a second, separate call and
    nothing else.

    Args:
        scorer: The scorer.
        requests: The inputs of each request by name, [samples, columns].

    Returns:
        For each request its logits, float32 [samples], or the reason why it has none.
    """
    answers: list[Answer] = [_unknown_form(request) for request in requests]
    places = defaultdict(list)
    for place, request in enumerate(requests):
        if (names := _FORM_OF.get(frozenset(request))) is not None:
            places[names].append(place)
    for names, these in places.items():
        found = _answer_form(scorer, names, [requests[place] for place in these])
        for place, logits in zip(these, found):
            answers[place] = logits
    return answers


def _answer_form(
    scorer: Scorer, names: tuple[str, ...], requests: Sequence[Request]
) -> list[Answer]:
    """The answers to requests that have the same inputs."""
    columns = ([request[name] for request in requests] for name in names)
    try:
        # A single request, as under low load, is not copied.
        arrays = (parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in columns)
        logits = _FORMS[names](scorer)(*arrays)
    except ValueError as error:
        if len(requests) == 1:
            return [error]
        return [_answer_form(scorer, names, [request])[0] for request in requests]
    ends = np.cumsum([len(request[names[0]]) for request in requests])
    return list(np.split(logits, ends[:-1]))


def _unknown_form(request: Request) -> ValueError:
    forms = ", or ".join(" and ".join(names) for names in _FORMS if WEIGHTS not in names)
    found = ", ".join(sorted(request)) or "none"
    return ValueError(f"expected the inputs {forms}, found {found}")
