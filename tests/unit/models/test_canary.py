"""A new version takes over only if it answers as the one that serves does, and is not much slower."""

import time
from pathlib import Path

import numpy as np
import pytest
from tests.unit.builders import (
    ECHO_CONFIG,
    PATIENCE_S,
    Gate,
    Recording,
    background,
    parameters_text,
    raise_,
    write_model,
)
from tests.unit.models.test_swapping import Following, write

from preheat.errors import ExecutionFailed, InvalidConfig
from preheat.repository.canary_policy import CanaryPolicy
from preheat.repository.server_parameters import parse_server_parameters
from preheat.tensors import Array

# How long microseconds take is not what most tests are about.
FEW = {
    "preheat.canary.samples": "4",
    "preheat.canary.seconds": "0.2",
    "preheat.canary.max_slowdown": "1000000",
}


@pytest.fixture(autouse=True)
def all_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However close together requests come, which is test_recent's to try."""
    monkeypatch.setattr("preheat.models.recent._SECONDS_BETWEEN", 0.0)


def config(**keys: str) -> str:
    return ECHO_CONFIG + parameters_text({**FEW, **{f"preheat.canary.{key}": text for key, text in keys.items()}})


def up(repository: Path, text: str) -> Following:
    write_model(repository, config=text)
    stack = Following(repository)
    stack.up()
    return stack


def drop_in(stack: Following, candidate: Recording) -> str:
    """A new version; why it does not serve, empty if it does."""
    stack.next = lambda: candidate
    write(stack.repository / "m", 2)
    stack.manager.refresh("m")
    return "" if stack.serves() == [2] else stack.reasons()[2, "FAILED"]


def ask(stack: Following, *values: float) -> None:
    for value in values:
        stack.ask("m", value).wait()


def noisy(x: Array) -> Array:
    """As an 8-bit model answers: a little off."""
    return np.asarray(-x + 0.01 * np.abs(x).max() * np.sin(np.arange(x.size)).reshape(x.shape), np.float32)


def test_one_that_answers_alike_takes_over(tmp_path: Path) -> None:
    stack = up(tmp_path, config())
    ask(stack, 1, 2, 3, 4, 5)
    assert drop_in(stack, Recording(answer=noisy)) == ""
    assert stack.made[0].names.count("infer 1") >= 9
    # And is asked what its own successor will be.
    assert stack.registry.find("m", "").recent is not None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(lambda x: x, "output 'y' agrees too little: cosine -1.0000, allowed is 0.99", id="another sign"),
        pytest.param(
            lambda x: x * np.nan,
            "output 'y' has other NaN or infinite values than before, in 2 of 2 places (4 live requests: 'y' cannot be "
            "compared in 4 of 4; ",
            id="no number",
        ),
        pytest.param(lambda x: np.stack([-x[:, 0], x[:, 1]], axis=1), "cosine 0.0000", id="one wrong"),
        pytest.param(lambda _: raise_(ExecutionFailed("no such index")), "no such index", id="none"),
    ],
)
def test_one_that_answers_otherwise_stays_aside_with_its_figures(tmp_path: Path, answer: object, says: str) -> None:
    stack = up(tmp_path, config())
    ask(stack, 1, 2, 3, 4)
    candidate = Recording()
    reason = ""

    def wrong_from_now_on(x: Array) -> Array:
        return answer(x) if x.any() else -x  # type: ignore[operator]

    candidate.answer = wrong_from_now_on
    reason = drop_in(stack, candidate)
    assert says in reason
    assert "the canary stays aside, and version 1 goes on" in reason
    assert candidate.names[-1] == "close model"
    assert stack.answered_by() == "1"


def test_a_wrong_scale_is_seen_by_tolerance_only(tmp_path: Path) -> None:
    stack = up(tmp_path, config())
    ask(stack, 1, 2)
    assert drop_in(stack, Recording(answer=lambda x: -2 * x)) == ""
    other = up(tmp_path / "other", config(tolerance="0.05"))
    ask(other, 1, 2)
    reason = drop_in(other, Recording(answer=lambda x: -2 * x))
    assert "differs by 100.00% of its largest value, allowed is 5.00%" in reason
    assert "2 live requests" in reason


def test_one_that_is_slower_stays_aside(tmp_path: Path) -> None:
    stack = up(tmp_path, config(max_slowdown="3"))
    ask(stack, 1, 2)
    reason = drop_in(stack, Recording(do=lambda _: time.sleep(0.01)))
    assert "times as long, allowed is 3" in reason


def test_one_that_hangs_stays_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preheat.models.canary._ANSWER_SECONDS", 0.05)
    stack = up(tmp_path, config())
    ask(stack, 7)
    gate = Gate()
    reason = drop_in(stack, Recording(do=gate))
    assert "version 2 has not answered" in reason
    gate.open()


def test_what_the_serving_version_cannot_answer_is_no_sample(tmp_path: Path) -> None:
    stack = up(tmp_path, config())
    stack.made[0].do = lambda batch: raise_(ExecutionFailed("three")) if (batch == 3).any() else None
    ask(stack, 1, 3)
    assert drop_in(stack, Recording()) == ""


def test_where_none_of_those_that_came_can_be_answered_stored_requests_are_asked(tmp_path: Path) -> None:
    stack = up(tmp_path, config(seconds="0") + WARMUP)
    stack.made[0].do = lambda batch: raise_(ExecutionFailed("three")) if (batch == 3).any() else None
    ask(stack, 3, 3, 3, 3, 3)
    assert "1 stored request:" in drop_in(stack, Recording(answer=np.positive))


def test_stored_requests_are_asked_as_clients_send_them(tmp_path: Path) -> None:
    reshaped = "dims: [ 2, 1 ] reshape { shape: [ 2 ] } }\noutput"
    stack = up(tmp_path, config(seconds="0").replace("dims: [ 2 ] }\noutput", reshaped) + WARMUP)
    assert "1 stored request:" in drop_in(stack, Recording(answer=np.positive))


SCORES = ECHO_CONFIG.replace('"y" data_type: TYPE_FP32 dims: [ 2 ]', '"y" data_type: TYPE_FP32 dims: [ 1 ]')


def test_scores_are_compared_over_all_requests_since_one_value_has_no_direction(tmp_path: Path) -> None:
    text = SCORES + parameters_text(FEW)
    stack = Following(write_model(tmp_path, config=text).parent)
    stack.next = lambda: Recording(answer=lambda x: x[:, :1])
    stack.up()
    ask(stack, 1, 2, 3, 4)
    reason = drop_in(stack, Recording(answer=lambda x: 5 - x[:, :1]))
    assert "output 'y' agrees too little: cosine 0.6667, allowed is 0.99 (4 live requests: " in reason
    write(stack.repository / "m", 3)
    stack.next = lambda: Recording(answer=lambda x: x[:, :1] * 1.02)
    stack.manager.refresh("m")
    assert stack.serves() == [3]


WARMUP = """model_warmup { name: "known" batch_size: 1 inputs { key: "x" value {
    data_type: TYPE_FP32 dims: [ 2 ] random_data: true } } }"""


@pytest.mark.parametrize(("warmup", "kind"), [(WARMUP, "1 stored request:"), ("", "4 made up requests:")])
def test_without_traffic_stored_requests_are_asked_or_such_as_are_made_up(
    tmp_path: Path, warmup: str, kind: str
) -> None:
    stack = up(tmp_path, config(seconds="0") + warmup)
    reason = drop_in(stack, Recording(answer=np.positive))
    assert kind in reason


def test_requests_that_come_meanwhile_count(tmp_path: Path) -> None:
    stack = up(tmp_path, config(seconds="60"))
    dropping = background(drop_in, stack, Recording())
    while not dropping.done():
        ask(stack, 1)
    assert dropping.result(PATIENCE_S) == ""


def test_a_server_that_stops_waits_for_no_canary(tmp_path: Path) -> None:
    stack = up(tmp_path, config(seconds="3600"))
    dropping = background(drop_in, stack, Recording())
    stack.wait_for_load(2)
    stack.manager.unload_all(PATIENCE_S)
    assert "the server is stopping" in dropping.result(PATIENCE_S)


def test_a_server_that_stops_waits_for_no_answer(tmp_path: Path) -> None:
    stack = up(tmp_path, config(seconds="3600"))
    ask(stack, 7)
    gate = Gate()
    dropping = background(drop_in, stack, Recording(do=gate))
    gate.await_entered()
    stack.manager.unload_all(PATIENCE_S)
    assert "the server is stopping" in dropping.result(PATIENCE_S)
    gate.open()


def test_an_unload_waits_for_no_canary(tmp_path: Path) -> None:
    stack = up(tmp_path, config(seconds="3600"))
    dropping = background(drop_in, stack, Recording())
    stack.wait_for_load(2)
    stack.manager.unload_model("m")
    dropping.exception(PATIENCE_S)
    assert stack.serves() == []


def test_two_that_unload_at_once_both_wait_for_no_canary(tmp_path: Path) -> None:
    stack = up(tmp_path, config(seconds="3600"))
    dropping = background(drop_in, stack, Recording())
    stack.wait_for_load(2)
    # The first to have the lock must not take the other's hurry away, nor leave any behind.
    both = [background(stack.manager.unload_model, "m") for _ in range(2)]
    dropping.exception(PATIENCE_S)
    for unloading in both:
        unloading.result(PATIENCE_S)
    stack.manager.load_model("m")
    write(stack.repository / "m", 3)
    placing = background(stack.manager.refresh, "m")
    stack.wait_for_load(4)
    ask(stack, 1, 2, 3, 4)
    placing.result(PATIENCE_S)
    assert stack.serves() == [3]


def test_other_tensors_are_refused_by_name(tmp_path: Path) -> None:
    stack = up(tmp_path, config())
    folder = stack.repository / "m"
    stack.next = lambda: Recording(output="z")
    (folder / "config.pbtxt").write_text(config().replace('"y"', '"z"'))
    stack.manager.refresh("m")
    assert "its outputs are z FP32, where they were y FP32" in stack.reasons()[1, "READY"]


def test_a_first_version_is_compared_to_nothing(tmp_path: Path) -> None:
    assert up(tmp_path, config()).serves() == [1]


FILE = Path("m/config.pbtxt")


def test_no_key_is_no_canary_and_any_is_one() -> None:
    assert parse_server_parameters({}, FILE)[0].canary is None
    parsed, _ = parse_server_parameters({"preheat.canary.samples": "8"}, FILE)
    assert parsed.canary == CanaryPolicy(samples=8, min_cosine=0.99)
    values = {
        "preheat.canary.tolerance": "0.1",
        "preheat.canary.max_slowdown": "1.2",
        "preheat.canary.outputs": "a, b",
        "preheat.canary.seconds": "5",
    }
    parsed, _ = parse_server_parameters(values, FILE)
    assert parsed.canary == CanaryPolicy(32, 5.0, None, 0.1, 1.2, ("a", "b"))


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("samples", "0", "from 1 to 10000"),
        ("seconds", "-1", "seconds, from 0"),
        ("min_cosine", "1.1", "up to 1"),
        ("min_cosine", "nan", "up to 1"),
        ("tolerance", "inf", "a share from 0"),
        ("max_slowdown", "0", "above 0"),
        ("outputs", "a,,b", "names of outputs"),
        ("colour", "blue", "there are samples, seconds, min_cosine, tolerance, max_slowdown, outputs"),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_name(key: str, text: str, says: str) -> None:
    with pytest.raises(InvalidConfig, match=rf"preheat\.canary\.{key}: '{text}': .*{says}"):
        parse_server_parameters({f"preheat.canary.{key}": text}, FILE)


def test_a_canary_needs_both_in_memory() -> None:
    values = {"preheat.canary.samples": "8", "preheat.swap": "replace"}
    with pytest.raises(InvalidConfig, match=r"preheat\.swap: replace: .* set side_by_side"):
        parse_server_parameters(values, FILE)
