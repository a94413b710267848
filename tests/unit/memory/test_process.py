"""What the process holds, and what is left for it."""

from pathlib import Path

from preheat.memory.process import available_bytes, release_free_memory, resident_bytes


def group(folder: Path, most: str, used: int, droppable: int) -> Path:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {droppable}\nactive_file 7\n")
    return folder


def machine(folder: Path, available_kib: int) -> Path:
    (folder / "meminfo").write_text(f"MemTotal:  1000 kB\nMemAvailable:     {available_kib} kB\n")
    return folder


def test_a_process_holds_something_and_some_is_left() -> None:
    assert resident_bytes() > 2**20
    left = available_bytes()
    assert left is not None
    assert left > 0


def test_the_smaller_of_machine_and_group_is_what_is_left(tmp_path: Path) -> None:
    machine(tmp_path, 500)
    assert available_bytes(tmp_path, tmp_path) == 500 * 1024
    group(tmp_path, "400000", 300000, 1000)
    assert available_bytes(tmp_path, tmp_path) == 101000
    group(tmp_path, "max", 300000, 1000)
    assert available_bytes(tmp_path, tmp_path) == 500 * 1024


def test_where_nothing_is_told_nothing_is_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) is None
    assert resident_bytes(tmp_path) == 0


def test_free_memory_is_given_back() -> None:
    before = resident_bytes()
    pieces = [bytearray(10_000) for _ in range(10_000)]
    grown = resident_bytes() - before
    del pieces
    release_free_memory()
    assert resident_bytes() - before < grown / 2
