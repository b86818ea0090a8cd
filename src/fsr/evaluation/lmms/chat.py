"""From the chat messages of lmms-eval to one padded batch for `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fsr.adapters.llava_video import video_inputs
from fsr.errors import UsageError
from fsr.evaluation.lmms.clips import Clip, read_clip

__all__ = ["Chat", "batch_of", "chat_of", "cut", "generate_arguments"]

LONGEST = 1024  # new tokens where a task does not say, as in lmms-eval's own models
SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Chat:
    """One prompt: turns as chat templates take them (pictures and frames inside), and its clips in order."""

    turns: list[dict[str, Any]]
    clips: list[Clip]

    @property
    def question(self) -> str:
        """The text of the last user turn: what relevance is computed for."""
        users = [t for t in self.turns if t["role"] == "user"]
        parts = users[-1]["content"] if users else []
        return "\n".join(p["text"] for p in parts if p["type"] == "text").strip()


def chat_of(messages: Sequence[Mapping[str, Any]], frames: int) -> Chat:
    """lmms-eval's messages ({"type": "image", "url": picture}) as Transformers writes them. frames: per clip.

    Raises:
        UsageError: audio, or a clip that cannot be read.
    """
    turns, clips = [], []
    for message in messages:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            kind = part["type"]
            if kind == "text":
                content.append({"type": "text", "text": part["text"]})
            elif kind == "image":
                content.append({"type": "image", "image": part["url"]})
            elif kind == "video":
                clips.append(read_clip(part["url"], frames))
                content.append({"type": "video", "video": clips[-1].frames})
            else:
                raise UsageError(f"a message with {kind}: only text, pictures and clips can be asked about.")
        turns.append({"role": message["role"], "content": content})
    return Chat(turns, clips)


def batch_of(processor: Any, chats: Sequence[Chat], pooled_clips: bool) -> tuple[dict[str, Any], list[str]]:
    """Inputs of one `generate` call, padded on the left, and the prompts as they were rendered.

    pooled_clips: LLaVA-Video, whose frames go through the picture processor.

    Raises:
        UsageError: the processor has no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise UsageError("this model's processor has no chat template: save one with the checkpoint.")
    turns = [chat.turns for chat in chats]
    prompts = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if pooled_clips and any(chat.clips for chat in chats):
        from PIL import Image

        clips = [[Image.fromarray(f) for clip in chat.clips for f in clip.frames] for chat in chats]
        return dict(video_inputs(processor, clips, prompts)), prompts
    options: dict[str, Any] = {"padding": True, "padding_side": "left"}
    if any(chat.clips for chat in chats):
        options |= {"do_sample_frames": False, "video_metadata": [c.metadata for chat in chats for c in chat.clips]}
    made = processor.apply_chat_template(
        turns,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=options,
    )
    return dict(made), prompts


def generate_arguments(task: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A task's `generation_kwargs` as `generate` takes them, and its stop strings.

    `do_sample` decides; where a task leaves it out, a temperature above 0 means sampling. Greedy calls drop the options
    of sampling, which Transformers would warn about.
    """
    given = {k: v for k, v in task.items() if v is not None}
    until = given.pop("until", [])
    temperature = given.get("temperature", 0)
    given["do_sample"] = bool(given.get("do_sample", temperature > 0)) and temperature > 0
    if not given["do_sample"]:
        for name in SAMPLING:
            given.pop(name, None)
    given.setdefault("max_new_tokens", LONGEST)
    return given, [until] if isinstance(until, str) else list(until)


def cut(text: str, until: Sequence[str]) -> str:
    """The answer up to the first stop string, without white space around it."""
    ends = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(ends)].strip() if ends else text.strip()


def to_device(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Tensors on the model's device, pixels in its dtype."""
    moved = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            value = value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        moved[name] = value
    return moved
