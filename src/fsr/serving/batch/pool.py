"""The pool of workers, over Ray Data: see `fsr.serving.batch`."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from time import time
from typing import Any

from tqdm import tqdm

from fsr.errors import UsageError, counted
from fsr.serving.batch.inputs import Row, cut, read_rows
from fsr.serving.batch.job import Job
from fsr.serving.batch.results import check_answered, read_parts, sweep
from fsr.serving.batch.worker import Worker

__all__ = ["Summary", "batch"]

RETRIES = 3  # of a batch whose worker died
IN_FLIGHT = (
    2  # batches that a worker holds, one of them being answered: it is never idle, and little is lost if it dies
)
OBJECT_STORE = 512 * 2**20  # bytes of shared memory on this machine; only questions and counts go through it


@dataclass(frozen=True)
class Summary:
    """What the folder holds at the end, and how this run went.

    rows: of the input, all answered or with an error. failed: those with an error. earlier: answered by earlier runs.
    seconds: from the first batch of this run to its last; starting: from the start of Ray to the first batch (by the
        clocks of the workers and of this machine).
    tokens_before, tokens_after: visual tokens per answered row, on average (None if every row failed).
    """

    rows: int
    failed: int
    earlier: int
    seconds: float
    starting: float
    tokens_before: float | None
    tokens_after: float | None

    @property
    def per_second(self) -> float:
        """Rows per second of this run, without its start."""
        return (self.rows - self.earlier) / self.seconds if self.seconds else 0.0


def batch(
    job: Job,
    *,
    question: str | None = None,
    workers: int = 1,
    batch_size: int = 16,
    address: str | None = None,
    progress: bool = False,
) -> Summary:
    """Answer every row of the input that has no answer yet.

    Args:
        job: input, output, model and method.
        question: for rows that bring none.
        workers: how many, one GPU each where there are any.
        batch_size: rows that are asked together and written as one part.
        address: of a Ray cluster; None starts Ray on this machine and stops it again.
        progress: show one bar on standard error.

    Raises:
        UsageError: input, output, method or cluster do not fit; nothing has been asked then.
    """
    if workers < 1 or batch_size < 1:
        raise UsageError(f"workers={workers}, batch size={batch_size}: give at least 1 of each.")
    rows = read_rows(job.source, question)
    job.check()
    done = check_answered(job.out, rows)
    job.claim()
    batches = cut(rows, dict.fromkeys(done), batch_size)
    began, first, last = time(), time(), time()
    if batches:
        with (
            _ray(address, workers) as ray,
            tqdm(total=len(rows), initial=len(done), unit="row", disable=not progress) as bar,
        ):
            gpus = _gpus(ray, job.device, workers)
            spans = _ask(ray, replace(job, device="cuda" if gpus else "cpu"), batches, workers, gpus, bar)
        first, last = min(s[0] for s in spans), max(s[1] for s in spans)
    missing = len(rows) - len(check_answered(job.out, rows))
    if missing:
        raise UsageError(
            f"{counted(missing, 'answer')} did not arrive in {str(job.out)!r}: give --out a folder on storage that all "
            "machines share."
        )
    sweep(job.out)
    found = read_parts(job.out, ("error", "tokens_before", "tokens_after"))
    return Summary(
        rows=len(rows),
        failed=sum(error is not None for error in found["error"]),
        earlier=len(done),
        seconds=last - first,
        starting=first - began,
        tokens_before=_mean(found["tokens_before"]),
        tokens_after=_mean(found["tokens_after"]),
    )


# ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def _ray(address: str | None, workers: int) -> Iterator[Any]:
    """Ray, quiet, on this machine or connected to a cluster; our connection ends with the block."""
    # Ray reads all of this when it is imported. Nothing is reported to anybody; a thread of Ray Data that outlives its
    # run must not start another Ray.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    local: dict[str, Any] = {}
    if address is not None:
        _check_reachable(address)
    else:
        # Ray listens on all interfaces and runs what it is sent: only with the word of this very run, then. Given this
        # way it is not written to the home folder, as Ray's own would be.
        if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # CPUs are tickets here, not cores. With one per worker and none left, Ray Data never starts.
        local = {"num_cpus": workers + 2, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    import ray

    with redirect_stdout(sys.stderr):  # Ray prints what happened to its workers
        try:
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            where = f"at {address}" if address else "on this machine"
            raise UsageError(f"Ray does not start or answer {where} ({reason}): see --address.") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray tries for many minutes to reach a head node that is not there, and says nothing."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit() or "://" in address:
        raise UsageError(f"--address {address!r}: give auto, or the head node as host:port (10.0.0.1:6379).")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray at {address} ({error}): start one there (ray start --head), or see --address."
        ) from error


def _gpus(ray: Any, device: str, workers: int) -> int:
    """GPUs per worker, 0 or 1. Ray never starts a worker that asks for a GPU the cluster does not have."""
    there = ray.cluster_resources()
    gpus = 0 if device == "cpu" or (device == "auto" and not there.get("GPU")) else 1
    for kind, each in (("GPU", gpus), ("CPU", 1)):
        if each * workers > there.get(kind, 0):
            raise UsageError(
                f"{workers} workers need {each * workers} {kind}s, Ray has {there.get(kind, 0):.0f}: use fewer."
            )
    return gpus


def _ask(
    ray: Any, job: Job, batches: Sequence[Sequence[Row]], workers: int, gpus: int, bar: tqdm
) -> list[tuple[float, float]]:
    """When each batch was begun and ended, in the workers' time."""
    import ray.data as data

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs as an error it raises, too
    items = [{"rows": json.dumps([asdict(row) for row in rows])} for rows in batches]
    with warnings.catch_warnings():
        # `max_task_retries` goes in Ray 2.64 (hence the bound of the extra); without it a batch that kills its worker
        # would be tried for ever.
        warnings.simplefilter("ignore", DeprecationWarning)
        asked = data.from_items(items, override_num_blocks=len(items)).map(
            Worker,
            fn_constructor_args=(job,),
            compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=IN_FLIGHT),
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
    spans = []
    try:
        # Closed before Ray ends: else a thread of Ray Data goes on asking for it.
        with closing(iter(asked.iter_rows())) as replies:
            for said in replies:
                if said["refused"]:
                    raise UsageError(said["refused"])
                spans.append((said["began"], said["ended"]))
                bar.update(said["rows"])
    except ray.exceptions.RayError as error:
        error.add_note(f"Finished batches are in {job.out}: the same command goes on from there.")
        raise
    return spans


def _mean(values: Sequence[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
