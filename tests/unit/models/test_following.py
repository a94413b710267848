"""Models are refreshed each on its own, none twice at once for nothing."""

import threading

from tests.unit.builders import PATIENCE_S

from preheat.models.following import Follower


class Refreshes:
    """Notes what is refreshed; ``held`` waits until it is let go."""

    def __init__(self, held: str = "") -> None:
        self._news = threading.Condition()
        self._held = held
        self.begun: list[str] = []
        self.go = threading.Event()

    def __call__(self, name: str) -> None:
        with self._news:
            self.begun.append(name)
            self._news.notify_all()
        if name == self._held:
            assert self.go.wait(PATIENCE_S)

    def wait_for(self, count: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.begun) >= count, PATIENCE_S)


def test_one_model_does_not_wait_for_another() -> None:
    refreshes = Refreshes("slow")
    follower = Follower(refreshes, concurrency=2)
    follower.tell(["slow"])
    refreshes.wait_for(1)
    follower.tell(["quick", "other"])
    refreshes.wait_for(3)
    assert follower.busy
    refreshes.go.set()
    follower.close()


def test_what_waits_already_is_not_put_in_line_again() -> None:
    refreshes = Refreshes("slow")
    follower = Follower(refreshes, concurrency=1)
    follower.tell(["slow"])
    refreshes.wait_for(1)
    # While one runs, one more has to follow: what it looks at may have changed since it looked.
    for _ in range(5):
        follower.tell(["slow", "quick"])
    refreshes.go.set()
    refreshes.wait_for(3)
    follower.tell(["end"])
    refreshes.wait_for(4)
    assert refreshes.begun == ["slow", "slow", "quick", "end"]
    follower.close()


def test_what_waits_is_not_begun_once_it_is_closed() -> None:
    refreshes = Refreshes("slow")
    follower = Follower(refreshes, concurrency=1)
    follower.tell(["slow", "quick"])
    refreshes.wait_for(1)
    follower.close()
    refreshes.go.set()
    assert refreshes.begun == ["slow"]
