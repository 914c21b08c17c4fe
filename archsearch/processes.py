"""Processes for trainings side by side, with one thread each."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import TYPE_CHECKING, Any, TypeVar

from archsearch.device import PLACE
from archsearch.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.sharedctypes import Synchronized

Asked = TypeVar("Asked")


def side_by_side(
    work: Callable[..., Any], asked: Iterable[Asked], workers: int, *more: Any
) -> Iterator[tuple[Asked, Any]]:
    """Do the same work on several things in processes of their own.

    Yields each of `asked` with `work(asked, *more)`, as they end. The processes are gone when the
    iterator is, in whatever way; what `work` prints is lost.

    Raises:
        RunError: if a process dies. What `work` raises passes through, and so does
            KeyboardInterrupt.
    """
    asked = list(asked)
    if not asked:
        return
    with _pool(min(workers, len(asked))) as pool:
        with _interrupts_later():
            answers = {pool.submit(work, one, *more): one for one in asked}
        for answer in as_completed(answers):
            yield answers[answer], answer.result()


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    before = set(active_children())
    spawn = get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=_begin, initargs=(spawn.Value("i", 0),)
    )
    try:
        yield pool
    except BrokenProcessPool:
        raise RunError(
            f"a training died; is there enough memory for {workers} at a time? Fewer with "
            "--workers. What has ended is kept; the same command continues"
        ) from None
    finally:
        for child in set(active_children()) - before:
            child.kill()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back; processes that are started meanwhile never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(begun: Synchronized[int]) -> None:
    """One thread for sums, another that ends this process with the one that started it."""
    import torch

    torch.set_num_threads(1)
    with begun.get_lock():
        os.environ[PLACE] = str(begun.value)
        begun.value += 1
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    parent = parent_process()

    def leave_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
