"""A version that is received is in the repository as a whole or not at all, and nowhere else."""

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.builders import ECHO_CONFIG, write_model

from preheat.errors import AlreadyExists, InvalidArtifact, InvalidRequest
from preheat.repository.arrival import Arrival, PushedFile, remove_leftovers
from preheat.repository.scan import ModelFolder, read_model


def announce(**files: bytes) -> list[PushedFile]:
    return [PushedFile(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()]


def begin(
    repository: Path, *files: PushedFile, model: str = "m", version: int = 0, config: str | None = ECHO_CONFIG
) -> Arrival:
    return Arrival([repository], model, version, files or announce(model=b"weights"), config)


def push(repository: Path, content: bytes = b"weights", **options: object) -> int:
    arrival = begin(repository, *announce(model=content), **options)  # type: ignore[arg-type]
    arrival.write(content)
    arrival.check()
    return arrival.place()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_model_is_there_with_its_configuration(tmp_path: Path) -> None:
    assert push(tmp_path) == 1
    assert names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "1" / "model").read_bytes() == b"weights"
    assert isinstance(read_model(tmp_path / "m"), ModelFolder)


def test_a_version_comes_after_those_that_are_there_or_were_rolled_back(tmp_path: Path) -> None:
    folder = write_model(tmp_path, versions=(1, 3))
    assert push(tmp_path, config=None) == 4
    (folder / "4").rename(folder / ".rolled-back-4")
    (folder / ".rolled-back-4").rename(folder / ".rolled-back-6-2")
    assert push(tmp_path, config=None) == 7
    assert push(tmp_path, config=None, version=2) == 2
    assert (folder / "config.pbtxt").read_text() == ECHO_CONFIG
    assert push(tmp_path, config=f"{ECHO_CONFIG}# new") == 8
    assert (folder / "config.pbtxt").read_text().endswith("# new")
    assert names(tmp_path) == ["m"]


def test_files_come_in_pieces_of_any_size(tmp_path: Path) -> None:
    contents = {"a": b"0123456789", "empty": b"", "deep/b": b"abc", "last": b""}
    files = [PushedFile(path, len(each), hashlib.sha256(each).hexdigest()) for path, each in contents.items()]
    arrival = begin(tmp_path, *files)
    for piece in (b"01", b"23456789ab", b"c"):
        arrival.write(piece)
    arrival.check()
    arrival.place()
    assert {path: (tmp_path / "m" / "1" / path).read_bytes() for path in contents} == contents


def test_what_is_there_already_is_not_replaced(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(AlreadyExists, match="m/1 is there already"):
        begin(tmp_path, version=1)
    arrival = begin(tmp_path, version=2)
    arrival.write(b"weights")
    (tmp_path / "m" / "2").mkdir()
    with pytest.raises(AlreadyExists, match="meanwhile"):
        arrival.place()
    arrival.abandon()
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m" / "2") == []


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ([b"weight"], "6 bytes of 7 came"),
        ([b"weights", b"!"], "1 more bytes"),
        ([b"WEIGHTS"], "another than the hash"),
    ],
)
def test_other_bytes_than_were_announced_are_refused(tmp_path: Path, sent: Sequence[bytes], says: str) -> None:
    arrival = begin(tmp_path)

    def send() -> None:
        for piece in sent:
            arrival.write(piece)
        arrival.check()

    with pytest.raises(InvalidRequest, match=says):
        send()
    arrival.abandon()
    assert names(tmp_path) == []


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    arrival = begin(tmp_path, *[PushedFile("model.pt2", 3, hashlib.sha256(b"abc").hexdigest())])
    arrival.write(b"abc")
    with pytest.raises(InvalidArtifact, match=r"model\.pt2 is damaged"):
        arrival.check()
    arrival.abandon()


def test_a_configuration_that_cannot_be_is_refused(tmp_path: Path) -> None:
    arrival = begin(tmp_path, config='backend: "planned" max_batch_size: -1')
    arrival.write(b"weights")
    with pytest.raises(InvalidRequest, match=r"the pushed config\.pbtxt: max_batch_size: -1"):
        arrival.check()
    arrival.abandon()


def test_the_samples_of_a_configuration_may_be_files_that_the_model_has(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "zeros").write_bytes(bytes(8))
    sample = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 input_data_file: "zeros" } }'
    assert push(tmp_path, config=f"{ECHO_CONFIG} model_warmup {{ {sample} }}") == 2


def test_a_new_model_needs_a_configuration_if_its_artifact_does_not_tell_its_backend(tmp_path: Path) -> None:
    arrival = begin(tmp_path, config=None)
    arrival.write(b"weights")
    with pytest.raises(InvalidRequest, match=r"'m' is new, and has none of model\.onnx, .* push its config\.pbtxt too"):
        arrival.check()
    arrival.abandon()


def test_what_is_refused_at_once_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="another than the hash"):
        begin(tmp_path, PushedFile("empty", 0, "0" * 64))
    with pytest.raises(InvalidRequest, match="version 1000000000000000000: must be from 1"):
        begin(tmp_path, version=10**18)
    assert names(tmp_path) == []


HASH = hashlib.sha256(b"").hexdigest()
TRICKS = (
    "", ".", "..", "../evil", "/etc/evil", "a/../../evil", "a//b", "a/", "/", ".hidden", "a/.hidden", "__pycache__/a",
    "a\\b", "a\0b", "x" * 2000, "a/" * 32 + "b",
)  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match="plain names"):
        begin(tmp_path, PushedFile(path, 0, HASH))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "model", ["", ".", "..", "../evil", "a/b", "/evil", ".hidden", "a b", "a\0", "é", "__pycache__"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(InvalidRequest, match="model name"):
        begin(tmp_path, model=model)
    assert names(tmp_path) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(min_size=0, max_size=20), st.text(st.sampled_from("ab./\\~\0 ")))
def test_no_name_at_all_leads_elsewhere(tmp_path: Path, model: str, path: str) -> None:
    outside, repository = tmp_path / "outside", tmp_path / "outside" / "repository"
    repository.mkdir(parents=True, exist_ok=True)
    try:
        arrival = begin(repository, PushedFile(path, 0, HASH), model=model)
    except InvalidRequest:
        pass
    else:
        arrival.check()
        arrival.place()
        assert (repository / model).is_dir()
    assert names(outside) == ["repository"]


def test_files_that_cannot_be_together_are_refused(tmp_path: Path) -> None:
    for paths in (["a", "a"], ["a", "a/b"]):
        with pytest.raises(InvalidRequest, match="twice, or as a folder"):
            begin(tmp_path, *[PushedFile(path, 0, HASH) for path in paths])
    with pytest.raises(InvalidRequest, match="1 to 10000 files"):
        Arrival([tmp_path], "m", 0, [], None)
    with pytest.raises(InvalidRequest, match="64 hexadecimal"):
        begin(tmp_path, PushedFile("a", 0, "x"))
    with pytest.raises(InvalidRequest, match="has room for"):
        begin(tmp_path, PushedFile("a", 2**62, HASH))
    assert names(tmp_path) == []


def test_a_model_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    elsewhere = write_model(tmp_path / "elsewhere")
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "m").symlink_to(elsewhere)
    with pytest.raises(InvalidRequest, match="link out of the repository"):
        begin(repository)


def test_a_model_gets_its_version_where_it_is(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    write_model(second)
    arrival = Arrival([first, second], "m", 0, announce(model=b"weights"), None)
    arrival.write(b"weights")
    arrival.place()
    assert names(second / "m") == ["1", "2", "config.pbtxt"]
    assert names(first) == []


def test_what_a_killed_process_left_is_removed_and_what_is_being_received_is_not(tmp_path: Path) -> None:
    write_model(tmp_path)
    living = begin(tmp_path)
    left = tmp_path / ".arriving-0123"
    (left / "m" / "2").mkdir(parents=True)
    (left / "lock").touch()
    assert remove_leftovers([tmp_path]) == 1
    assert not left.exists()
    living.write(b"weights")
    living.check()
    assert living.place() == 2


def test_a_folder_without_a_lock_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / ".arriving-mine").mkdir()
    assert remove_leftovers([tmp_path]) == 0
    descriptor = os.open(tmp_path / ".arriving-mine" / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert remove_leftovers([tmp_path]) == 0
    os.close(descriptor)
    assert remove_leftovers([tmp_path]) == 1
