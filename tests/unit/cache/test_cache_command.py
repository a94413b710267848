"""``preheat cache``: what it prints, what it removes, and what it says of what cannot be."""

import json
import os
import time
from pathlib import Path

import pytest
from tests.unit.cache.loads import CODE, LIMIT, RECORD, key_of, store

from preheat.cache import CompileCache, inventory
from preheat.cache.locks import try_lock
from preheat.cli import main

SIZE = sum(map(len, CODE.values()))
DAY = 86400


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREHEAT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The default directory, with three entries in two environments."""
    directory = tmp_path / "preheat"
    directory.mkdir(mode=0o700)
    cache = CompileCache(directory, max_bytes=LIMIT)
    for days, key in ((0, key_of("new")), (10, key_of("old")), (40, key_of("x", environment="torch 2.12"))):
        store(cache, key)
        used_s = time.time() - days * DAY
        os.utime(directory / str(key) / "manifest.json", (used_s, used_s))
    cache.close()
    return directory


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["cache", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def complaint(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert main(["cache", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def left(directory: Path) -> list[str]:
    return [entry.key for entry in inventory(directory)]


NEW, OLD, OTHER = str(key_of("new")), str(key_of("old")), str(key_of("x", environment="torch 2.12"))


def test_the_list_has_every_entry_with_its_model(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    header, *rows, total = printed(capsys, "list").splitlines()
    assert header.split("  ")[0] == "ENTRY"
    assert [row.split()[0] for row in rows] == [key.rpartition("/")[2][:12] for key in (NEW, OLD, OTHER)]
    assert all(row.split()[2:6] == ["bert", "3.0", "KiB", "4"] and row.endswith("-") for row in rows)
    assert total == f"3 entries, 9.1 KiB in {stored}"


def test_the_list_verifies_when_it_is_asked_to(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    (stored / OLD / "files" / "graph.py").write_bytes(b"changed")
    lock = try_lock(stored / f"{OTHER}.lock")
    assert lock is not None
    _, new, old, other, damage, _ = printed(capsys, "list", "--verify").splitlines()
    assert new.endswith("  intact")
    assert old.endswith("  damaged")
    assert other.endswith("  in use")
    assert damage == f"{OLD}: damaged: files/graph.py has 7 bytes instead of 800"
    lock.release()


def test_the_list_as_json_has_all_that_is_known(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    first, *rest = json.loads(printed(capsys, "list", "--json", "--cache-dir", str(stored)))
    assert len(rest) == 2
    assert first.pop("created") <= first.pop("last_used")
    assert first == {
        "entry": key_of("new").name,
        "environment": key_of("new").environment,
        "environment_text": "torch 2.13, AVX512",
        "backend": "double",
        "record": RECORD,
        "size": SIZE,
        "files": len(CODE),
        "integrity": "unchecked",
        "damage": None,
    }


def test_an_entry_without_a_manifest_is_listed_all_the_same(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    (stored / NEW / "manifest.json").unlink()
    assert "manifest.json: No such file or directory" in printed(capsys, "list")
    assert json.loads(printed(capsys, "list", "--json"))[0]["integrity"] == "damaged"


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--all"], []),
        (["--environment", key_of().environment], [OTHER]),
        (["--max-bytes", str(2 * SIZE)], [NEW, OLD]),
        (["--max-bytes", "0"], []),
        (["--unused-days", "10"], [NEW]),
        (["--unused-days", "30"], [NEW, OLD]),
        (["--damaged"], [NEW, OTHER]),
    ],
)
def test_pruning_removes_what_was_asked_for_and_a_dry_run_says_so_only(
    arguments: list[str], kept: list[str], capsys: pytest.CaptureFixture[str], stored: Path
) -> None:
    content = stored / OLD / "files" / "graph.py"
    content.write_bytes(content.read_bytes()[::-1])
    gone = {NEW, OLD, OTHER} - set(kept)
    said = printed(capsys, "prune", *arguments, "--dry-run").splitlines()
    assert {line.split(": ")[0] for line in said[:-1]} == {f"would remove {key}" for key in gone}
    assert left(stored) == [NEW, OLD, OTHER]
    said = printed(capsys, "prune", *arguments).splitlines()
    assert {line.split(": ")[0] for line in said[:-1]} == {f"removed {key}" for key in gone}
    assert said[-1].startswith(f"{len(gone)} entries, ")
    assert left(stored) == kept


def test_pruning_leaves_what_is_in_use_and_says_so(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    lock = try_lock(stored / f"{OLD}.lock")
    assert lock is not None
    assert f"kept {OLD}: bert, in use" in printed(capsys, "prune", "--all").splitlines()
    assert left(stored) == [OLD]
    lock.release()


def test_where_no_server_has_run_there_is_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert printed(capsys, "list").endswith(f"0 entries, 0 B in {tmp_path}/preheat\n")
    assert printed(capsys, "prune", "--all") == "0 entries, 0 B\n"
    assert list(tmp_path.iterdir()) == []


def test_a_named_folder_that_is_not_there_is_complained_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = f"preheat: {tmp_path}/typo: no such folder; a server that caches there makes it\n"
    assert complaint(capsys, 1, "list", "--cache-dir", str(tmp_path / "typo")) == expected
    monkeypatch.setenv("PREHEAT_CACHE_DIR", str(tmp_path / "typo"))
    assert complaint(capsys, 1, "prune", "--all") == expected
    monkeypatch.setenv("PREHEAT_CACHE_DIR", "none")
    assert "there is no cache" in complaint(capsys, 2, "list")


def test_an_environment_that_is_not_there_is_complained_of_with_those_that_are(
    capsys: pytest.CaptureFixture[str], stored: Path
) -> None:
    text = complaint(capsys, 2, "prune", "--environment", "torch")
    assert text.startswith("preheat: --environment: 'torch': no such environment; there are torch-2.12-")
    assert len(left(stored)) == 3


@pytest.mark.parametrize(
    "arguments",
    [[], ["prune"], ["prune", "--all", "--damaged"], ["prune", "--max-bytes", "1GB"], ["prune", "--unused-days", "-1"]],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["cache", *arguments])
    assert caught.value.code == 2
    assert "usage: preheat cache" in capsys.readouterr().err
