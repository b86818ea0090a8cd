"""One class per family, for ids that say which checkpoint they expect: `Pruned`, which refuses another."""

from __future__ import annotations

from fsr.evaluation.lmms.model import Pruned


class PrunedLlava(Pruned):
    """LLaVA-1.5."""

    family = ("llava",)


class PrunedLlavaNext(Pruned):
    """LLaVA-NeXT."""

    family = ("llava_next",)


class PrunedLlavaNextVideo(Pruned):
    """LLaVA-NeXT-Video."""

    family = ("llava_next_video",)


class PrunedLlavaOnevision(Pruned):
    """LLaVA-OneVision."""

    family = ("llava_onevision",)


class PrunedLlavaVideo(Pruned):
    """LLaVA-Video, converted by `fsr.adapters.llava_video_convert`."""

    family = ("llava_video",)


class PrunedQwen2VL(Pruned):
    """Qwen2-VL."""

    family = ("qwen2_vl",)


class PrunedQwen2_5VL(Pruned):
    """Qwen2.5-VL."""

    family = ("qwen2_5_vl",)


class PrunedQwen3VL(Pruned):
    """Qwen3-VL."""

    family = ("qwen3_vl", "qwen3_vl_moe")


class PrunedInternVL(Pruned):
    """InternVL."""

    family = ("internvl",)


class PrunedGemma3(Pruned):
    """Gemma 3."""

    family = ("gemma3",)


class PrunedSmolVLM(Pruned):
    """SmolVLM."""

    family = ("smolvlm",)


class PrunedIdefics3(Pruned):
    """Idefics3."""

    family = ("idefics3",)
