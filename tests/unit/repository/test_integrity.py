"""What is half copied or damaged is told from what is whole, whatever it is."""

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preheat.errors import InvalidArtifact
from preheat.repository.integrity import check_version


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(range(256)) * 4)
        archive.writestr("archive/data/0", b"weights" * 50)


def safetensors(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}, "__metadata__": {}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))


def onnx(path: Path) -> None:
    """A ModelProto: ir_version 8, a graph of 300 bytes, and an operator set."""
    path.write_bytes(b"\x08\x08" + b"\x3a\xac\x02" + bytes(300) + b"\x42\x04\x0a\x00\x10\x11")


def ir(path: Path) -> None:
    path.write_text('<net><layers><layer type="Const"><data offset="8" size="8"/></layer></layers></net>')
    path.with_suffix(".bin").write_bytes(bytes(16))


def array(path: Path) -> None:
    np.savez(path, a=np.arange(10))


WHOLE: dict[str, Callable[[Path], object]] = {
    "model.pt2": zipped,
    "model.pt": zipped,
    "samples.npz": array,
    "model.safetensors": safetensors,
    "model.onnx": onnx,
    "model.xml": ir,
    "table.json": lambda path: path.write_text('{"a": [1, 2]}'),
    "model.plan": lambda path: path.write_bytes(b"engine"),
}


def damage(folder: Path) -> str:
    """What is said of what is in ``folder``; empty if nothing."""
    try:
        check_version(folder)
    except InvalidArtifact as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole_passes_and_any_truncation_does_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / "deep" / name
    path.parent.mkdir()
    WHOLE[name](path)
    assert damage(tmp_path) == ""
    content = path.read_bytes()
    # Of an engine nothing is known but that there is something.
    lengths = range(len(content)) if name != "model.plan" else [0]
    for length in lengths:
        path.write_bytes(content[:length])
        said = damage(tmp_path)
        assert str(path) in said, length
        assert "damaged, or not all of it is there yet" in said


@pytest.mark.parametrize("name", ["model.pt2", "samples.npz"])
def test_a_changed_byte_of_a_member_is_seen(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WHOLE[name](path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = archive.infolist()[0]
    begins = member.header_offset + 30 + len(member.filename) + 20
    for at in range(begins, begins + min(member.compress_size - 20, 100)):
        flipped = bytearray(content)
        flipped[at] ^= 0x40
        path.write_bytes(flipped)
        assert damage(tmp_path), at


def test_an_old_pickle_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02pickle")
    assert damage(tmp_path) == ""


def test_weights_that_are_too_short_or_missing_are_seen(tmp_path: Path) -> None:
    ir(tmp_path / "model.xml")
    (tmp_path / "model.bin").write_bytes(bytes(15))
    assert "its weights, model.bin, should have 16 bytes, and have 15" in damage(tmp_path)
    (tmp_path / "model.bin").unlink()
    assert "have 0" in damage(tmp_path)


def test_a_file_that_is_longer_than_it_says_is_seen(tmp_path: Path) -> None:
    safetensors(tmp_path / "model.safetensors")
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b"!")
    assert "describes" in damage(tmp_path)


def listed(folder: Path, *names: str) -> str:
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)


def test_a_manifest_is_believed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("model.bin", "deep/other.bin"):
        (tmp_path / name).write_bytes(name.encode())
    manifest = tmp_path / "SHA256SUMS"
    manifest.write_text(listed(tmp_path, "model.bin", "deep/other.bin").replace("  deep", " *deep"))
    assert damage(tmp_path) == ""
    (tmp_path / "model.bin").write_bytes(b"other")
    assert "line 1: model.bin is another than was listed" in damage(tmp_path)
    (tmp_path / "model.bin").unlink()
    assert "line 1: model.bin is not there" in damage(tmp_path)


@pytest.mark.parametrize(
    "line", ["model.bin", "0" * 64, "0" * 64 + "  /etc/passwd", "0" * 64 + "  ../x", "z" * 64 + "  x"]
)
def test_a_manifest_that_is_none_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{line}\n")
    assert "line 1 is not as sha256sum writes it" in damage(tmp_path)


def test_hidden_files_and_loops_are_passed_by(tmp_path: Path) -> None:
    (tmp_path / ".part.onnx").write_bytes(b"")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.json").write_bytes(b"")
    (tmp_path / "round").symlink_to(tmp_path)
    assert damage(tmp_path) == ""


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to(tmp_path / "gone")
    assert "cannot be read" in damage(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.sampled_from(sorted(WHOLE)), st.binary(max_size=200), st.booleans(), st.integers(0, 600))
def test_whatever_is_there_nothing_else_is_raised(
    tmp_path: Path, name: str, noise: bytes, inside: bool, at: int
) -> None:
    path = tmp_path / name
    WHOLE[name](path)
    content = path.read_bytes()
    path.write_bytes(content[:at] + noise + content[at + len(noise) :] if inside else noise)
    damage(tmp_path)
    path.unlink()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000])
def test_deep_nesting_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.json").write_text(text)
    assert damage(tmp_path)
