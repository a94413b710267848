"""Letters posted on any thread are read on the loop, each once, in order."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import partial

import pytest
from tests.unit.builders import PATIENCE_S, raise_

from preheat.transport.mailbox import Mailbox


def on_another_thread(work: Callable[[], object]) -> None:
    """Do ``work``, and wait for it without letting the loop go on."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(PATIENCE_S)


async def deliver(mailbox: Mailbox) -> None:
    """Return when everything posted before by this thread has been read."""
    read = asyncio.Event()
    on_another_thread(lambda: mailbox.post(read.set))
    await asyncio.wait_for(read.wait(), PATIENCE_S)


def test_letters_are_read_on_the_loop_in_the_order_they_were_posted() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(asyncio.get_running_loop())
        read: list[tuple[int, int]] = []

        def note(number: int) -> None:
            read.append((number, threading.get_ident()))

        def post_all() -> None:
            for number in range(100):
                mailbox.post(partial(note, number))

        await asyncio.to_thread(post_all)
        await deliver(mailbox)
        assert read == [(number, threading.get_ident()) for number in range(100)]

    asyncio.run(scenario())


def test_what_is_posted_on_the_loops_own_thread_is_read_at_once() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(asyncio.get_running_loop())
        read: list[int] = []
        mailbox.post(lambda: read.append(1))
        assert read == [1]

    asyncio.run(scenario())


def test_of_many_threads_no_letter_is_lost_or_read_twice() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(asyncio.get_running_loop())
        read: list[tuple[int, int]] = []

        def post_all(thread: int) -> None:
            for number in range(300):
                mailbox.post(partial(read.append, (thread, number)))

        with ThreadPoolExecutor(6) as pool:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*[loop.run_in_executor(pool, post_all, thread) for thread in range(6)])
        await deliver(mailbox)
        for thread in range(6):
            assert [number for sender, number in read if sender == thread] == list(range(300))

    asyncio.run(scenario())


def test_a_letter_that_posts_another_has_it_read_too() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(asyncio.get_running_loop())
        read = asyncio.Event()
        mailbox.post(lambda: mailbox.post(read.set))
        await asyncio.wait_for(read.wait(), PATIENCE_S)

    asyncio.run(scenario())


def test_a_letter_that_raises_does_not_keep_later_ones_from_being_read() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        raised: list[object] = []
        loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
        mailbox = Mailbox(loop)
        mailbox.post(lambda: raise_(ValueError("no such letter")))
        await asyncio.sleep(0)
        await deliver(mailbox)
        assert [str(each) for each in raised] == ["no such letter"]

    asyncio.run(scenario())


def post_all(mailbox: Mailbox, read: list[int]) -> None:
    for number in range(10):
        mailbox.post(partial(read.append, number))


def test_posts_between_two_readings_share_one_waking_of_the_loop() -> None:
    class CountingLoop(asyncio.SelectorEventLoop):
        wakings = 0

        def call_soon_threadsafe(
            self, callback: Callable[..., object], *args: object, context: Context | None = None
        ) -> asyncio.Handle:
            self.wakings += 1
            return super().call_soon_threadsafe(callback, *args, context=context)

    async def scenario(loop: CountingLoop) -> int:
        mailbox = Mailbox(loop)
        read: list[int] = []
        # While the loop is kept from reading.
        on_another_thread(partial(post_all, mailbox, read))
        wakings = loop.wakings
        assert read == []
        await asyncio.sleep(0)
        assert read == list(range(10))
        return wakings

    loop = CountingLoop()
    try:
        assert loop.run_until_complete(scenario(loop)) == 1
    finally:
        loop.close()


def test_a_loop_that_is_closed_cannot_be_posted_to() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    mailbox = Mailbox(loop)
    with pytest.raises(RuntimeError, match="closed"):
        on_another_thread(lambda: mailbox.post(lambda: None))
