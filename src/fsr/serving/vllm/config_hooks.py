"""What vLLM settles by an architecture's name, for ours: as for the stock one, and a scheduler that ends requests."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["SCHEDULER", "hook"]

# By name: the hook runs in the server's process, the scheduler in the engine's.
SCHEDULER = "fsr.serving.vllm.scheduling.scheduler"


def hook(stock: Any) -> Any:
    """A class for vLLM's `MODELS_CONFIG_MAP`.

    stock: the class there of the architecture that is pruned, or `VerifyAndUpdateConfig`.
    """

    class Pruned(stock):  # type: ignore[misc]
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            stock.verify_and_update_config(vllm_config)
            settings = vllm_config.scheduler_config
            if settings.scheduler_cls is None:
                settings.scheduler_cls = SCHEDULER
            elif settings.scheduler_cls != SCHEDULER:
                logging.getLogger("vllm.fsr").warning(
                    "scheduler_cls=%s is not fsr's: a request whose picture cannot be pruned will be answered, and "
                    "only the log tells. Leave scheduler_cls out, or put fsr.serving.vllm.scheduling.EndsFailed in "
                    "front of your class.",
                    settings.scheduler_cls,
                )

    return Pruned
