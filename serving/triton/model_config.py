"""The configuration files of servers: Triton's config.pbtxt and TensorFlow Serving's models.config.

Texts only: where they go is said by `repository`, what the settings do by the server that reads
them. It knows the shapes of a model, but neither rows nor weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dlrm.checkpoint.manifest import ModelShape
from serving.id_columns import IdColumns

DENSE, IDS, PACKED_IDS = "dense", "ids", "packed_ids"
RAW_DENSE, RAW_VALUES = "raw_dense", "raw_values"
WEIGHTS = "weights"
LOGIT, PROBABILITY = "logit", "probability"
SAVED_MODEL_OUTPUTS = ("logits", "probabilities")
HOT_SHARE, THREADS, VERIFY = "hot_share", "threads", "verify"  # parameters of the backend

_OPTIONAL = " optional: true"
_ONE_DIMENSION = " reshape: { shape: [ ] }"  # the SavedModel's outputs are [samples]


@dataclass(frozen=True)
class ModelOptions:
    """How a server batches and queues the requests for a model, and how the scorer runs.

    Attributes:
        max_batch_size: Most samples of one request, and of one batch.
        preferred_batch_sizes: Batch sizes to wait for while the delay lasts; none: as many as come.
        max_queue_delay_us: How long the first request of a batch waits for others, microseconds.
        max_queue_size: Most requests that wait; 0 for no limit.
        request_timeout_ms: How long a request may wait in the queue; 0 for no limit.
        instances: Number of scorers, each in a process of its own with its own hot rows.
        keep_versions: Number of the newest versions that are served at the same time.
        hot_share: Share of the rows' bytes that is read into memory.
        threads: Threads of a scorer; 0 for one per core.
        verify: Whether each version's files are read and checked before it answers.

    Raises:
        ValueError: A value makes no sense.
    """

    max_batch_size: int = 4096
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    max_queue_size: int = 0
    request_timeout_ms: int = 0
    instances: int = 1
    keep_versions: int = 1
    hot_share: float = 1.0
    threads: int = 0
    verify: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "instances", "keep_versions"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected --{name} of at least 1, found {getattr(self, name)}")
        for name in ("max_queue_delay_us", "max_queue_size", "request_timeout_ms", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected --{name} of at least 0, found {getattr(self, name)}")
        if not 0 <= self.hot_share <= 1:
            raise ValueError(f"expected --hot_share from 0 to 1, found {self.hot_share}")
        for size in self.preferred_batch_sizes:
            if not 1 <= size <= self.max_batch_size:
                raise ValueError(
                    f"expected --preferred_batch_sizes from 1 to {self.max_batch_size}, the "
                    f"--max_batch_size, found {size}"
                )


def scorer_config(
    name: str, model: ModelShape, words: int, dictionary: bool, options: ModelOptions
) -> str:
    """The config.pbtxt of a model that the scorer answers, in Triton's Python backend.

    Args:
        name: The name of the model.
        model: Its shape.
        words: Words of a sample with packed ids, which models without bags take.
        dictionary: Whether the artifact has a dictionary, so that raw samples can be sent.
        options: How requests are batched and queued, and how the scorer runs.
    """
    assert model.num_dense is not None
    columns = IdColumns.of_model(model)
    inputs = [
        _tensor(DENSE, "TYPE_FP32", model.num_dense, _OPTIONAL if dictionary else ""),
        _tensor(IDS, "TYPE_INT32", columns.width, _OPTIONAL),
    ]
    if not columns.bags:
        inputs.append(_tensor(PACKED_IDS, "TYPE_INT32", words, _OPTIONAL))
    if columns.weights:
        inputs.append(_tensor(WEIGHTS, "TYPE_FP32", columns.width, _OPTIONAL))
    if dictionary:
        inputs += [
            _tensor(RAW_DENSE, "TYPE_INT32", model.num_dense, _OPTIONAL),
            _tensor(RAW_VALUES, "TYPE_INT64", columns.width, _OPTIONAL),
        ]
    parameters = {
        HOT_SHARE: str(options.hot_share),
        THREADS: str(options.threads),
        VERIFY: str(options.verify).lower(),
    }
    return _config(name, 'backend: "python"', inputs, _OUTPUTS, options, parameters)


def saved_model_config(name: str, model: ModelShape, options: ModelOptions) -> str:
    """The config.pbtxt of the exported SavedModel, for Triton's TensorFlow backend.

    That backend answers the signature `serving_default`: dense features and ids.

    Args:
        name: The name of the model.
        model: Its shape.
        options: How requests are batched and queued; what is the scorer's is left out.
    """
    assert model.num_dense is not None
    columns = IdColumns.of_model(model)
    inputs = [
        _tensor(DENSE, "TYPE_FP32", model.num_dense),
        _tensor(IDS, "TYPE_INT32", columns.width),
        *([_tensor(WEIGHTS, "TYPE_FP32", columns.width)] if columns.weights else []),
    ]
    outputs = [_tensor(output, "TYPE_FP32", 1, _ONE_DIMENSION) for output in SAVED_MODEL_OUTPUTS]
    return _config(name, 'platform: "tensorflow_savedmodel"', inputs, outputs, options, {})


def tensorflow_serving_config(name: str, base_path: str, options: ModelOptions) -> str:
    """TensorFlow Serving's models.config for one model.

    Args:
        name: The name of the model.
        base_path: The folder with its versions, as the server sees it.
        options: Says how many versions are served.
    """
    return f"""\
model_config_list {{
  config {{
    name: {json.dumps(name)}
    base_path: {json.dumps(base_path)}
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: {options.keep_versions} }} }}
  }}
}}
"""


def tensorflow_serving_batching(options: ModelOptions) -> str:
    """TensorFlow Serving's batching.config: the same batches and queue as with Triton."""
    return f"""\
max_batch_size {{ value: {options.max_batch_size} }}
batch_timeout_micros {{ value: {options.max_queue_delay_us} }}
max_enqueued_batches {{ value: {options.max_queue_size or 1 << 20} }}
num_batch_threads {{ value: {options.instances} }}
"""


def _config(
    name: str,
    engine: str,
    inputs: Iterable[str],
    outputs: Iterable[str],
    options: ModelOptions,
    parameters: Mapping[str, str],
) -> str:
    preferred = ", ".join(map(str, options.preferred_batch_sizes))
    return f"""\
name: {json.dumps(name)}
{engine}
max_batch_size: {options.max_batch_size}
input [
{_lines(inputs)}
]
output [
{_lines(outputs)}
]
dynamic_batching {{
  preferred_batch_size: [ {preferred} ]
  max_queue_delay_microseconds: {options.max_queue_delay_us}{_queue_policy(options)}
}}
instance_group [ {{ kind: KIND_CPU count: {options.instances} }} ]
version_policy {{ latest {{ num_versions: {options.keep_versions} }} }}
{"".join(map(_parameter, parameters.items()))}"""


def _queue_policy(options: ModelOptions) -> str:
    """The limits of the queue; nothing where there are none.

    With any limit, Triton looks for an idle instance when a request comes, and if the only one is
    about to become idle, the request may wait for the next one, or for half a second.
    """
    if not (options.max_queue_size or options.request_timeout_ms):
        return ""
    return f"""
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {options.request_timeout_ms * 1000}
    allow_timeout_override: true
    max_queue_size: {options.max_queue_size}
  }}"""


def _tensor(name: str, kind: str, columns: int, more: str = "") -> str:
    return f"{{ name: {json.dumps(name)} data_type: {kind} dims: [ {columns} ]{more} }}"


def _parameter(item: tuple[str, str]) -> str:
    key, value = map(json.dumps, item)
    return f"parameters {{ key: {key} value: {{ string_value: {value} }} }}\n"


def _lines(entries: Iterable[str]) -> str:
    return ",\n".join(f"  {entry}" for entry in entries)


_OUTPUTS = (_tensor(LOGIT, "TYPE_FP32", 1), _tensor(PROBABILITY, "TYPE_FP32", 1))
