"""Which fields of Triton's ModelConfig this server honours, which it refuses, and which have nothing to act on here.

Every field is in one of the tables below (a test holds them against the schema), and ``docs/configuration.md`` shows
them. A refused field fails the load by name: nothing that is asked for is silently dropped.
"""

import enum
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from preheat.errors import InvalidConfig


class Verdict(enum.Enum):
    """What setting a field does."""

    HONOURED = "honoured"
    REFUSED = "refused"
    INERT = "inert"


# A path stands for the field and all below it, unless a longer path is listed.
HONOURED = frozenset(
    {
        "name",
        "platform",
        "backend",
        "version_policy",
        "max_batch_size",
        "input",
        "output",
        "dynamic_batching",
        "instance_group",
        "default_model_filename",
        "parameters",
        "model_warmup",
        "model_transaction_policy",
        "optimization",
        "response_cache",
    }
)

# Path -> what would be right instead.
REFUSED = {
    "runtime": "name the backend in 'backend'",
    "input.is_shape_tensor": "no backend takes shape tensors",
    "input.allow_ragged_batch": "requests of different shapes are batched apart",
    "input.is_non_linear_format_io": "no backend takes non-linear formats",
    "output.is_shape_tensor": "no backend gives shape tensors",
    "output.is_non_linear_format_io": "no backend gives non-linear formats",
    "batch_input": "no backend takes ragged batches",
    "batch_output": "no backend gives ragged batches",
    "optimization.graph": "use the backend's own parameters",
    "optimization.priority": "models share the machine equally",
    "optimization.cuda": "use the backend's own parameters",
    "optimization.execution_accelerators": "name the backend that does it in 'backend', "
    "or set execution_provider: tensorrt of backend 'onnxruntime'",
    "sequence_batching": "sequences are not served",
    "ensemble_scheduling": "ensembles are not served: call the models one by one",
    "instance_group.profile": "the backend chooses its profiles",
    "instance_group.rate_limiter": "limit the number of instances with 'count'",
    "instance_group.passive": "leave the group out",
    "instance_group.secondary_devices": "no backend uses secondary devices",
    "instance_group.host_policy": "pin the server's process instead",
    "cc_model_filenames": "use 'default_model_filename'",
    "metric_tags": "label the scrape target instead",
    "model_operations": "no backend loads operator libraries",
    "model_transaction_policy.decoupled": "every request gets exactly one response",
    "model_repository_agents": "check artifacts before they enter the repository",
    "response_cache.enable": "responses are not cached",
    "model_metrics": "the histograms' buckets are fixed",
}

# Path -> why there is nothing to act on.
INERT = {
    "input.format": "describes the layout to readers; dims say all that is checked",
    "output.label_filename": "read by the classification extension only, which is not offered",
    "optimization.input_pinned_memory": "a hint to Triton's copying; answers do not depend on it",
    "optimization.output_pinned_memory": "a hint to Triton's copying; answers do not depend on it",
    "optimization.gather_kernel_buffer_threshold": "a hint to Triton's copying; answers do not depend on it",
    "optimization.eager_batching": "a hint to Triton's copying; answers do not depend on it",
    "dynamic_batching.preserve_ordering": "a unary call has one response, so there is no order to preserve",
    "instance_group.name": "instances are named after their model",
}


def verdict(path: str) -> Verdict:
    """The verdict on a dotted field path such as ``dynamic_batching.priority_levels``.

    KeyError if no table covers it.
    """
    while path:
        if path in REFUSED:
            return Verdict.REFUSED
        if path in INERT:
            return Verdict.INERT
        if path in HONOURED:
            return Verdict.HONOURED
        path = path.rpartition(".")[0]
    raise KeyError(path)


def refuse_unsupported(config: Message, file: Path) -> None:
    """Raise InvalidConfig for the first field of ``config`` that is set and refused."""
    for path in _set_fields(config, ""):
        if verdict(path) is Verdict.REFUSED:
            instead = next(advice for refused, advice in REFUSED.items() if f"{path}.".startswith(f"{refused}."))
            raise InvalidConfig(f"{file}: {path}: not supported; {instead}")


def _set_fields(message: Message, prefix: str) -> Iterator[str]:
    """The dotted paths of the fields that are set, depth first; maps count as one field."""
    for field, value in message.ListFields():
        path = prefix + field.name
        yield path
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.message_type is None or is_map:
            continue
        for child in [value] if isinstance(value, Message) else value:
            yield from _set_fields(child, path + ".")
