"""Requests of any size share batches of a few shapes, each is answered at its own, and nothing is built for any."""

import queue
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tests.e2e.gated_model import NEVER_US, SUCCESS
from tests.e2e.scrape import scrape, scrape_until
from tests.e2e.server_process import LIMIT_S, ServerProcess, write_model
from tests.e2e.tensors import Arrays, infer_inputs
from tests.e2e.wire import Wire, infer_request

BUCKETS = {
    "specializes_on_shape": "true",
    **{f"preheat.shape.{tensor}": "sequence" for tensor in ("ids", "mask", "ids_out", "mask_out")},
    "preheat.buckets.sequence": "4,8,16",
    "preheat.pad.ids": "0",
    "preheat.pad.mask": "0",
}
BATCHING = "dynamic_batching { }"
FILLING = f"dynamic_batching {{ max_queue_delay_microseconds: {NEVER_US} }}"
MODELS = {"sharing": FILLING, "busy": BATCHING, "refusing": BATCHING}
KINDS = {"graph", "autotuning", "cuda_graph", "engine", "session", "eager"}


def config(parameters: Mapping[str, str] = BUCKETS, *, batching: str = BATCHING, max_batch_size: int = 8) -> str:
    """A model that answers its two inputs back."""
    tensors = [
        f'{kind} {{ name: "{name}{end}" data_type: TYPE_INT64 dims: [ -1 ] }}'
        for kind, end in (("input", ""), ("output", "_out"))
        for name in ("ids", "mask")
    ]
    values = [f'parameters {{ key: "{key}" value {{ string_value: "{parameters[key]}" }} }}' for key in parameters]
    return "\n".join(['backend: "double"', f"max_batch_size: {max_batch_size}", batching, *tensors, *values])


def but(**changes: str | None) -> Mapping[str, str]:
    """The parameters with some replaced or left out; a ``__`` in a name is a dot."""
    values = BUCKETS | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in values.items() if value is not None}


# What is wrong, and what the refusal must name.
BAD: dict[str, tuple[str, Sequence[str]]] = {
    "no_sizes": (config(but(preheat__buckets__sequence="")), ["preheat.buckets.sequence: ''", "whole numbers"]),
    "size_0": (config(but(preheat__buckets__sequence="0,4")), ["preheat.buckets.sequence: '0,4'", "at least 1"]),
    "other_dimension": (
        config(but(preheat__buckets__width="4")),
        ["preheat.buckets.width: no input has a varying dimension of that name", "['sequence']"],
    ),
    "beyond_dimension": (
        config(but(preheat__dimension__sequence="1..8")),
        ["preheat.buckets.sequence: 16: the dimension is sequence(1..8)"],
    ),
    "no_pad": (config(but(preheat__pad__mask=None)), ["preheat.pad.mask: not set", "input 'mask'"]),
    "pad_of_output": (config(but(preheat__pad__ids_out="0")), ["preheat.pad.ids_out: no input", "['ids', 'mask']"]),
    "pad_of_another_type": (config(but(preheat__pad__ids="0.5")), ["preheat.pad.ids: '0.5': must be a value of INT64"]),
    "pads_without_buckets": (
        config(but(preheat__buckets__sequence=None, preheat__pad__mask=None)),
        ["preheat.pad.ids: no input of that name has an axis with buckets"],
    ),
    "unknown_way_outside": (
        config(but(preheat__outside_buckets="pad")),
        ["preheat.outside_buckets: 'pad': must be one of refuse, eager, compile"],
    ),
    "eager_without_a_way": (
        config(but(preheat__outside_buckets="eager")),
        ["preheat.outside_buckets: eager: backend 'double'", "set refuse or compile"],
    ),
    "outside_of_nothing": (
        config({"preheat.outside_buckets": "compile"}),
        ["preheat.outside_buckets: no dimension has buckets; set preheat.buckets.NAME"],
    ),
    "tolerance_of_all": (
        config(but(preheat__padding_tolerance="1")),
        ["preheat.padding_tolerance: '1': must be a share from 0 up to 1"],
    ),
    "tolerance_of_nothing": (
        config({"preheat.padding_tolerance": "0.1"}),
        ["preheat.padding_tolerance: no dimension has buckets; set preheat.buckets.NAME"],
    ),
    "sees_requests_whole": (
        config(but(requests="true")),
        ["preheat.buckets.sequence: has no effect on a model that sees requests whole", "'double'"],
    ),
    "rows_missing": (config(but(preheat__buckets="1,4")), ["preheat.buckets: the largest must be max_batch_size, 8"]),
    "dependent_rows_padded": (
        config(but(preheat__row_independent="false", preheat__buckets="1,8"), batching=""),
        ["preheat.buckets: each answer of this model depends on the rows", "preheat.accept_row_dependence: true"],
    ),
    "dependent_rows_batched": (
        config(but(preheat__row_independent="false")),
        ["dynamic_batching: each answer of this model depends on the rows", "preheat.accept_row_dependence: true"],
    ),
    "too_many": (
        config(but(preheat__buckets__sequence=",".join(map(str, range(1, 1100))))),
        ["4 batch sizes times 1099 combinations", "declare fewer buckets"],
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("buckets")
    for name, batching in MODELS.items():
        write_model(repository, name, config(batching=batching))
    for name, (text, _) in BAD.items():
        write_model(repository, name, text)
    with ServerProcess(repository) as server:
        yield server
        # Whatever was asked of them, nothing was built for it.
        cold = scrape(server).select("preheat_cold_compiles_total")
        assert {sample.value for sample in cold} == {0.0}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Any]:
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        yield client


def tokens(length: int, *, rows: int = 1, number: int = 0) -> Arrays:
    """Inputs that no other ``number`` has, and none of which is padding."""
    start = 1 + 1000 * number
    ids = np.arange(start, start + rows * length, dtype=np.int64).reshape(rows, length)
    return {"ids": ids, "mask": -ids}


def ask_at_once(client: Any, model: str, asked: Sequence[Arrays]) -> list[str]:
    """Send all of ``asked`` before any is answered; what is wrong with the answers, each held against its own."""
    ends: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
    for number, arrays in enumerate(asked):
        client.async_infer(
            model,
            infer_inputs(arrays),
            callback=lambda result, error, number=number: ends.put((number, result, error)),
            client_timeout=LIMIT_S,
        )
    return [fault for _ in asked if (fault := _fault(asked, *ends.get(timeout=2 * LIMIT_S)))]


def _fault(asked: Sequence[Arrays], number: int, result: Any, error: Any) -> str:
    if error is not None:
        return f"request {number}: {error}"
    answers = {name: result.as_numpy(f"{name}_out") for name in ("ids", "mask")}
    same = all(np.array_equal(answers[name], array) for name, array in asked[number].items())
    return "" if same else f"request {number}: {asked[number]} was answered with {answers}"


def test_requests_of_many_lengths_share_a_batch_for_each_bucket_and_get_back_their_own(
    server: ServerProcess, client: Any
) -> None:
    # Eight for each bucket, so three batches are full, and nothing else ever runs.
    lengths = [*range(1, 9), *range(1, 9), *range(9, 17)]
    assert ask_at_once(client, "sharing", [tokens(length, number=k) for k, length in enumerate(lengths)]) == []
    found = scrape_until(server, lambda found: found.total(SUCCESS, model="sharing") == len(lengths))
    assert found.total("nv_inference_exec_count", model="sharing") == 3
    assert found.total("preheat_batch_rows_sum", model="sharing") == len(lengths)


def test_any_lengths_and_rows_get_back_their_own_bytes_at_their_own_size(client: Any) -> None:
    dice = np.random.default_rng(0)
    asked = [tokens(int(dice.integers(1, 17)), rows=int(dice.integers(1, 9)), number=k) for k in range(300)]
    assert ask_at_once(client, "busy", asked) == []


@pytest.mark.parametrize("length", [17, 1000])
def test_a_length_that_no_bucket_holds_is_refused_by_input_and_buckets(client: Any, length: int) -> None:
    with pytest.raises(grpcclient.InferenceServerException) as refusal:
        client.infer("refusing", infer_inputs(tokens(length)))
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert (
        f"input 'ids' for model 'refusing' has {length} in dimension 'sequence', which is beyond every bucket: 4, 8, 16"
    ) in refusal.value.message()


def test_the_longest_length_that_a_bucket_holds_is_served(client: Any) -> None:
    assert ask_at_once(client, "refusing", [tokens(16, rows=8)]) == []


@pytest.mark.parametrize("model", MODELS)
def test_the_metrics_have_a_series_for_all_that_could_be_compiled_and_it_is_0(
    server: ServerProcess, client: Any, model: str
) -> None:
    if model == "refusing":
        ask_at_once(client, model, [tokens(length) for length in range(1, 17)])
    found = scrape(server)
    cold = found.select("preheat_cold_compiles_total", model=model, version="1", instance="0")
    assert {sample.labels["kind"]: sample.value for sample in cold} == dict.fromkeys(KINDS, 0.0)
    before = found.select("preheat_compilations_total", model=model, version="1")
    assert {sample.labels["kind"] for sample in before} == KINDS


@pytest.mark.parametrize("name", BAD)
def test_buckets_that_cannot_be_fail_the_load_by_what_is_wrong_with_them(server: ServerProcess, name: str) -> None:
    with Wire(server.grpc_address) as wire:
        status = wire.status("ModelInfer", infer_request(name, []))
    assert status.code is grpc.StatusCode.NOT_FOUND
    for fragment in BAD[name][1]:
        assert fragment in status.text


def test_row_dependence_has_every_size_for_a_bucket_and_the_effective_configuration_says_so(tmp_path: Path) -> None:
    write_model(tmp_path, "dependent", config(but(preheat__row_independent="false"), batching="", max_batch_size=3))
    with (
        ServerProcess(tmp_path, options=("--log-level", "debug")) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        shown = client.get_model_config("dependent").config.parameters["preheat.row_independent"]
        assert shown.string_value == "false"
        for rows in (1, 2, 3):
            assert f"batch {rows}, sequence 16" in server.log
        assert ask_at_once(client, "dependent", [tokens(5, rows=3)]) == []
