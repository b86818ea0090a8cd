"""A request that shows a picture which could not be pruned ends with an error; all others go on.

vLLM ends a single request in its scheduler (finish reason "error", which its server answers with status 500): so do
structured outputs whose grammar fails, and transfers of KV blocks. A model has no part in that, but vLLM takes a
scheduler by name (`--scheduler-cls`), and asks a hook of each architecture for settings. The hook here names this
scheduler, which is vLLM's own with one look at `FailedPictures` before it reads what a step gave.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from fsr.serving.vllm.failures import FailedPictures

__all__ = ["EndsFailed", "PrunedAsyncScheduler", "PrunedScheduler", "scheduler"]


class EndsFailed:
    """Mixin in front of a scheduler of vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fsr_failed = FailedPictures(self.vllm_config.instance_id)  # type: ignore[attr-defined]

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Before the step's tokens are read: nothing of such an answer goes out, not even its first token."""
        requests: Any = self.requests  # type: ignore[attr-defined]
        ended = []
        if failed := self._fsr_failed.names():
            shows = {name: {f.mm_hash for f in requests[name].mm_features} & failed
                     for name in scheduler_output.num_scheduled_tokens if name in requests}  # fmt: skip
            bad = {name: pictures for name, pictures in shows.items() if pictures}
            for name, pictures in bad.items():
                logging.getLogger("vllm.fsr").error(
                    "request %s ends with an error: picture %s could not be pruned", name, ", ".join(sorted(pictures))
                )
            ended = self.finish_requests(bad, RequestStatus.FINISHED_ERROR)  # type: ignore[attr-defined]
        made = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        for request in ended:
            told = EngineCoreOutput(
                request_id=request.request_id, new_token_ids=[], finish_reason=request.get_finished_reason(),
                events=request.take_events(), trace_headers=request.trace_headers,
            )  # fmt: skip
            made.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(told)
        return made

    def shutdown(self) -> None:
        """As the scheduler does; then no file is left."""
        super().shutdown()  # type: ignore[misc]
        self._fsr_failed.close()


class PrunedScheduler(EndsFailed, Scheduler):
    """vLLM's scheduler that waits for each step."""


class PrunedAsyncScheduler(EndsFailed, AsyncScheduler):
    """vLLM's scheduler that plans a step ahead."""


def scheduler(*, vllm_config: Any, **rest: Any) -> Any:
    """Whichever of the two the engine settled on; vLLM decides that after it was given a name."""
    kind = PrunedAsyncScheduler if vllm_config.scheduler_config.async_scheduling else PrunedScheduler
    return kind(vllm_config=vllm_config, **rest)
