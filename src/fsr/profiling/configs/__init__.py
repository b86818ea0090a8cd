"""True-size models by name, as Transformers config objects: the published numbers, so that nothing has to be
downloaded.

The numbers are those of each checkpoint's `config.json` on the hub (named in `CONFIGS`), written down by hand, or
Transformers' own defaults where these are the checkpoint's. Tests hold the parameters of each against its model card.
"""

from __future__ import annotations

from typing import Any

from fsr.errors import UsageError
from fsr.profiling.configs.gemma import GEMMA
from fsr.profiling.configs.llava import LLAVA
from fsr.profiling.configs.others import OTHERS
from fsr.profiling.configs.parts import NamedConfig, clip_text
from fsr.profiling.configs.qwen import QWEN

__all__ = ["CONFIGS", "NamedConfig", "clip_text", "named"]

CONFIGS: dict[str, NamedConfig] = {**LLAVA, **QWEN, **GEMMA, **OTHERS}


def named(name: str) -> Any:
    """A fresh config object.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in CONFIGS:
        raise UsageError(f"no config {name!r}: choose one of {', '.join(CONFIGS)}.")
    return CONFIGS[name].build()
