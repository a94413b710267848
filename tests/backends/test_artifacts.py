"""What a file is, told from its bytes: right for whole files, harmless for any other bytes, quick for both."""

import gc
import os
import re
import time
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.backends.cases import LinearModule, make_source

from preheat.errors import InvalidArtifact
from preheat_backends.artifacts import Kind, Takes, find_artifact, sniff

TAKES = Takes("b", ("model.a", "model.b"), frozenset({Kind.TEXT}), "prose (.a or .b)")
ONNX_SAMPLES = sorted(Path(onnx.__file__).parent.glob("backend/test/data/*/*/model.onnx"))
# Of processor time, for the machine may be busy: ten times what it takes, a hundredth of what loading would.
QUICK_S = 0.05

fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sniff_bytes(folder: Path, content: bytes) -> Kind:
    """Sniff ``content``, and hold the time it took to the limit."""
    path = folder / "file"
    path.write_bytes(content)
    # The collector looks through all that other tests have left.
    gc.disable()
    try:
        started_s = time.thread_time()
        kind = sniff(path)
        assert time.thread_time() - started_s < QUICK_S
    finally:
        gc.enable()
    return kind


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.SPECIAL], ids=lambda kind: kind.name)
def test_each_kind_is_known_by_its_content(specimens: dict[Kind, Path], kind: Kind) -> None:
    assert sniff(specimens[kind]) is kind


def test_every_kind_completes_a_sentence() -> None:
    assert [kind for kind in Kind if not re.match(r"(an?|neither) \w", kind.value)] == []


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert sniff(tmp_path / "pipe") is Kind.SPECIAL


def test_a_checkpoint_of_torch_before_zip_is_known(tmp_path: Path) -> None:
    torch.save(LinearModule().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert sniff(tmp_path / "old.pt") is Kind.CHECKPOINT


def test_onnx_models_of_every_age_are_known() -> None:
    assert len(ONNX_SAMPLES) > 50
    assert {sniff(path) for path in ONNX_SAMPLES} == {Kind.ONNX}


def test_text_that_ends_within_a_character_of_what_is_read_is_text(tmp_path: Path) -> None:
    assert sniff_bytes(tmp_path, b"x" + "é".encode() * 4096) is Kind.TEXT


def test_an_artifact_that_cannot_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.a").write_text("text")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # permissions do not bind the superuser, who may run this
    with pytest.raises(InvalidArtifact, match=r"model\.a cannot be read: Permission denied"):
        find_artifact(make_source(tmp_path), TAKES)


def test_the_first_of_the_default_names_is_taken(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.b").write_text("b")
    assert find_artifact(make_source(tmp_path), TAKES).path.name == "model.b"
    (tmp_path / "1" / "model.a").write_text("a")
    assert find_artifact(make_source(tmp_path), TAKES).path.name == "model.a"


def test_an_empty_folder_is_said_to_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(InvalidArtifact, match=r"1 has no model\.a and no model\.b \(it holds nothing\); the"):
        find_artifact(make_source(tmp_path), TAKES)


@fuzz
@given(content=st.binary(max_size=2000))
def test_no_bytes_break_it(tmp_path: Path, content: bytes) -> None:
    sniff_bytes(tmp_path, content)


@fuzz
@given(
    start=st.sampled_from(
        [b"PK\x03\x04", b"\x08\x08", b"\x08\x0a\x3a", b"\x80\x02", b"\x20\0\0\0\0\0\0\0{", b'\x10\0\0\0\0\0\0\0{"a"']
    ),
    content=st.binary(max_size=300),
)
def test_no_bytes_break_it_after_a_promising_start(tmp_path: Path, start: bytes, content: bytes) -> None:
    sniff_bytes(tmp_path, start + content)


@fuzz
@given(data=st.data())
def test_no_damage_to_a_real_file_breaks_it(tmp_path: Path, specimens: dict[Kind, Path], data: st.DataObject) -> None:
    files = sorted((path for path in specimens.values() if path.is_file()), key=str)
    content = bytearray(data.draw(st.sampled_from(files)).read_bytes())
    del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    sniff_bytes(tmp_path, bytes(content))


@pytest.mark.parametrize(
    ("kind", "cut_short"),
    [
        (Kind.CHECKPOINT, {Kind.ZIP_CUT_SHORT}),
        (Kind.EXPORTED_PROGRAM, {Kind.ZIP_CUT_SHORT}),
        (Kind.ONNX, {Kind.ONNX_CUT_SHORT, Kind.ONNX}),  # past its graph there is little left to miss
        (Kind.SAFETENSORS, {Kind.SAFETENSORS_CUT_SHORT, Kind.SAFETENSORS}),  # its data is its reader's to check
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else "",
)
def test_a_file_cut_short_is_said_to_be(
    tmp_path: Path, specimens: dict[Kind, Path], kind: Kind, cut_short: set[Kind]
) -> None:
    content = specimens[kind].read_bytes()
    kinds = {sniff_bytes(tmp_path, content[:length]) for length in range(30, len(content), 7)}
    assert kinds == cut_short
