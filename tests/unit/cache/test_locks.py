"""One holder at a time, among threads and processes, and none that is dead."""

import threading
from pathlib import Path

from preheat.cache.locks import try_lock, wait_for_lock


def test_a_lock_excludes_until_it_is_released_even_within_a_process(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert try_lock(tmp_path / "lock") is None
    lock.release()
    lock.release()
    again = try_lock(tmp_path / "lock")
    assert again is not None
    again.release()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_not_mistaken_for_one(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "lock")
    assert first is not None
    waiting = threading.Event()
    taken = []
    waiter = threading.Thread(
        target=lambda: taken.append(wait_for_lock(tmp_path / "lock", limit_s=None, announce=waiting.set))
    )
    waiter.start()
    waiting.wait()
    first.remove()
    waiter.join()
    (second,) = taken
    assert second is not None
    assert (tmp_path / "lock").exists()
    assert try_lock(tmp_path / "lock") is None
    second.remove()
    assert not (tmp_path / "lock").exists()


def test_waiting_ends_at_its_limit_with_nothing(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    announced: list[str] = []
    assert wait_for_lock(tmp_path / "lock", limit_s=0.2, announce=lambda: announced.append("once")) is None
    assert announced == ["once"]
    lock.release()
