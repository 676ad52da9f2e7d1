"""Many arms through joblib: in parallel, reproducible, and interruptible without losing what is done."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import joblib
import torch

from gnnstab.checkpoint.threads import one_thread
from gnnstab.guest import guest
from gnnstab.verification._marking import mark_of
from gnnstab.verification._storing import store_one, stored

T = TypeVar("T")
Progress = Callable[[str], None]


def sweep(
    jobs: Mapping[str, Callable[[], T]],
    kind: type[T],
    *,
    of: Sequence[Any] = (),
    workers: int = 1,
    progress: Progress | None = None,
    store: str | Path | None = None,
) -> dict[str, T]:
    """Run every job and return its result by key.

    Args:
        jobs: Key → function without arguments.
        kind: The dataclass of the results.
        of: Whatever the results depend on besides the keys: the model, batches, functions, settings.
        workers: Processes; 1 runs them here. A joblib back end chosen by ``joblib.parallel_config`` (Dask, Ray) is used
            as it is.
        progress: Called as each job is finished.
        store: A JSON-lines file. What it holds is not run again, and each result is appended as it comes.

    An interrupt (Ctrl-C) goes on to the caller: what is finished by then stands in the store.
    """
    path = None if store is None else Path(store).absolute()
    prefix = f"{mark_of(of)}/" if store is not None and of else ""
    known = stored(path, [prefix + key for key in jobs], kind)
    done = {key.removeprefix(prefix): result for key, result in known.items()}
    todo = [key for key in jobs if key not in done]
    # Arms are many and their tensors small: threads that wait for each other cost far more than they save.
    with one_thread(), _working_directory_importable():
        for key, result in _results(jobs, todo, workers):
            done[key] = result
            store_one(path, prefix + key, result)
            if progress is not None:
                progress(f"{len(done)}/{len(jobs)} {key}")
    return done


def _results(jobs: Mapping[str, Callable[[], T]], todo: Sequence[str], workers: int) -> Any:
    if workers == 1 or len(todo) < 2:
        return ((key, jobs[key]()) for key in todo)
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1)
    return parallel(joblib.delayed(_one)(key, jobs[key]) for key in todo)


def _one(key: str, job: Callable[[], T]) -> tuple[str, T]:
    torch.set_num_threads(1)
    with guest():  # The exception goes to another process, without the code that it came from.
        return key, job()


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """New processes take over the path on which modules are found: a model may have come from the working directory."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        if here in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]
