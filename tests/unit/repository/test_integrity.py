"""What is half copied or damaged is told from what is whole, whatever it is."""

import hashlib
import io
import json
import os
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


def real_safetensors(path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    library.save_file({"w": np.ones((3, 4), np.float32), "nothing": np.ones(0), "b": np.ones(3, np.int64)}, path)


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def field(number: int, content: bytes) -> bytes:
    """A field with a length, as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(content)) + content


OPERATOR_SETS = field(8, b"\x0a\x00\x10\x11")


def onnx(path: Path) -> None:
    """A ModelProto: ir_version 8, a graph with a name, and an operator set."""
    path.write_bytes(b"\x08\x08" + field(7, field(2, bytes(300))) + OPERATOR_SETS)


def outer_archive(path: Path) -> None:
    """An archive with another one in it, as it is, whose directory is near the end."""
    inner = io.BytesIO()
    np.savez(inner, a=np.arange(10))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/samples.npz", inner.getvalue())
        archive.writestr("archive/weights", b"w" * 600)


def onnx_with(path: Path, location: str, **where: int) -> None:
    """A model with a weight in a file of its own, and one that is in it."""
    entries = [("location", location), *((key, str(value)) for key, value in where.items())]
    external = b"".join(field(13, field(1, key.encode()) + field(2, value.encode())) for key, value in entries)
    weights = field(5, b"\x08\x04" + external + b"\x70\x01") + field(5, field(9, bytes(16)))
    path.write_bytes(field(7, weights) + OPERATOR_SETS)


def ir(path: Path) -> None:
    path.write_text('<net><layers><layer type="Const"><data offset="8" size="8"/></layer></layers></net>')
    path.with_suffix(".bin").write_bytes(bytes(16))


def array(path: Path) -> None:
    np.savez(path, a=np.arange(10))


WHOLE: dict[str, Callable[[Path], object]] = {
    "model.pt2": zipped,
    "model.pt": zipped,
    "nested.pt2": outer_archive,
    "archive.of_any_kind": zipped,
    "samples.npz": array,
    "model.safetensors": safetensors,
    "real.safetensors": real_safetensors,
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
    lengths = range(len(content)) if name != "model.plan" else range(1)
    # Of another kind of file it is not known either that it has to be an archive.
    if name == "archive.of_any_kind":
        lengths = lengths[4:]
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


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_of_any_member_is_seen_unless_it_changes_nothing(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in "ab":
            archive.writestr(name, bytes(range(256)))
        spans = [(each.header_offset + 31, each.compress_size) for each in archive.infolist()]
    content = path.read_bytes()
    for at in (begin + offset for begin, size in spans for offset in range(size)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x01]) + content[at + 1 :])
        if not damage(tmp_path):
            with zipfile.ZipFile(path) as archive:
                assert [archive.read(name) for name in "ab"] == [bytes(range(256))] * 2, at
            assert compression == zipfile.ZIP_DEFLATED


def test_an_archive_that_has_lost_its_beginning_is_seen(tmp_path: Path) -> None:
    for name in ("model.pt2", "data.zip"):
        zipped(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(bytes(4) + content[4:])
        assert "its own directory is missing, or its beginning" in damage(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "data.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    assert damage(tmp_path) == ""


def test_what_torch_writes_is_whole(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(3)}, tmp_path / "model.pt")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert damage(tmp_path) == ""


@pytest.mark.parametrize(
    "offsets",
    ["[0, Infinity]", "[0, 4.0]", "[0, 1e400]", "[0]", "[4, 0]", "[-4, 4]", "[1, 4]", "[true, 4]", "null", '"04"'],
)
def test_tensors_that_are_nowhere_or_leave_holes_are_seen(tmp_path: Path, offsets: str) -> None:
    header = f'{{"w": {{"dtype": "U8", "shape": [4], "data_offsets": {offsets}}}}}'.encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "its header" in damage(tmp_path)


def test_weights_of_onnx_that_lie_in_another_file_have_to_be_there(tmp_path: Path) -> None:
    onnx_with(tmp_path / "model.onnx", "weights.data", offset=64, length=100)
    assert "its weights, weights.data, should have 164 bytes, and that file is not there" in damage(tmp_path)
    (tmp_path / "weights.data").write_bytes(bytes(163))
    assert "should have 164 bytes, and that file has 163" in damage(tmp_path)
    (tmp_path / "weights.data").write_bytes(bytes(164))
    assert damage(tmp_path) == ""


def test_weights_that_lead_out_of_the_folder_are_not_looked_for(tmp_path: Path) -> None:
    for location in ("/dev/null", "../weights.data"):
        onnx_with(tmp_path / "model.onnx", location, offset=0, length=100)
        assert damage(tmp_path) == ""


def test_what_onnx_writes_is_whole_with_its_weights(tmp_path: Path) -> None:
    library = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    weights = [numpy_helper.from_array(np.ones((8, 8), np.float32), name) for name in ("v", "w")]
    ends = [helper.make_tensor_value_info(name, 1, [1, 8]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "v"], ["z"]), helper.make_node("MatMul", ["z", "w"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights))
    library.save(model, tmp_path / "inside.onnx")
    library.save(
        model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    assert damage(tmp_path) == ""
    size = (tmp_path / "model.onnx.data").stat().st_size
    os.truncate(tmp_path / "model.onnx.data", size - 1)
    assert f"should have {size} bytes" in damage(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a" + b"\xff" * 9 + b"\x01",  # longer than anything can be
        b"\x3a" + b"\xff" * 11,
        b"\x3b\x00",  # a group, which there is none of
        bytes(8),
        field(7, b"") + b"\x40\x01",  # the operator sets as a number
        field(7, b"\x0a\x7f") + OPERATOR_SETS,  # a node longer than the graph
        field(7, field(5, field(13, field(1, b"offset") + field(2, b"x")))) + OPERATOR_SETS,
        field(7, field(5, field(13, field(1, b"x" * 5000)))) + OPERATOR_SETS,
    ],
)
def test_what_is_no_onnx_model_is_seen(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert "as ONNX: " in damage(tmp_path)


def test_an_old_pickle_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02pickle")
    assert damage(tmp_path) == ""


def test_weights_that_are_too_short_or_missing_are_seen(tmp_path: Path) -> None:
    ir(tmp_path / "model.xml")
    (tmp_path / "model.bin").write_bytes(bytes(15))
    assert "its weights, model.bin, should have 16 bytes, and that file has 15" in damage(tmp_path)
    (tmp_path / "model.bin").unlink()
    assert "that file is not there" in damage(tmp_path)


def test_a_model_without_weights_may_have_none(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text('<net><layer type="Slice"><data offset="8" size="8"/></layer></net>')
    assert damage(tmp_path) == ""
    (tmp_path / "model.bin").touch()
    assert damage(tmp_path) == ""
    (tmp_path / "model.xml").unlink()
    assert "model.bin is damaged, or not all of it is there yet: it is empty" in damage(tmp_path)


def test_entities_that_grow_without_end_are_damage(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{number} "{f"&e{number - 1};" * 10}">' for number in range(1, 12))
    (tmp_path / "model.xml").write_text(f'<!DOCTYPE n [<!ENTITY e0 "0123456789">{entities}]><n>&e11;</n>')
    assert "as XML: " in damage(tmp_path)


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


def test_a_manifest_that_was_made_anew_in_its_place_has_itself_in_it(tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    lines = listed(tmp_path, "model.py") + listed(tmp_path, "model.py").replace("model.py", "SHA256SUMS")
    (tmp_path / "SHA256SUMS").write_text(lines)
    assert damage(tmp_path) == ""


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


@pytest.mark.parametrize("name", ["model.onnx", "anything", "folder"])
def test_a_link_that_leads_nowhere_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "gone")
    assert f"{tmp_path / name} cannot be read" in damage(tmp_path)


def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    (elsewhere / "model.json").write_text("{")
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "linked").symlink_to(elsewhere)
    assert str(tmp_path / "version" / "linked" / "model.json") in damage(tmp_path / "version")


def test_a_folder_that_is_gone_is_said_and_an_empty_one_is_whole(tmp_path: Path) -> None:
    assert damage(tmp_path) == ""
    assert f"{tmp_path / 'gone'} cannot be read" in damage(tmp_path / "gone")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert damage(tmp_path) == ""
    os.mkfifo(tmp_path / "model.onnx")
    assert "it is no regular file" in damage(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), min_size=1, max_size=8),
    st.integers(0, 5000),
)
def test_whatever_is_changed_nothing_else_is_raised(
    tmp_path: Path, name: str, changes: list[tuple[int, int]], length: int
) -> None:
    path = tmp_path / name
    WHOLE[name](path)
    content = bytearray(path.read_bytes())
    for at, change in changes:
        content[at % len(content)] ^= change
    path.write_bytes(content[: length or None])
    assert len(damage(tmp_path)) < 1000
    path.unlink()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.sampled_from(sorted(WHOLE)), st.binary(max_size=200), st.booleans(), st.integers(0, 600))
def test_whatever_is_there_nothing_else_is_raised(
    tmp_path: Path, name: str, noise: bytes, inside: bool, at: int
) -> None:
    path = tmp_path / name
    WHOLE[name](path)
    content = path.read_bytes()
    path.write_bytes(content[:at] + noise + content[at + len(noise) :] if inside else noise)
    assert len(damage(tmp_path)) < 1000
    path.unlink()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000])
def test_deep_nesting_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.json").write_text(text)
    assert damage(tmp_path)
