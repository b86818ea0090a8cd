"""A question about a picture as the model's inputs: one user turn through the processor's chat template.

The only place that calls processors, templates and tokenizers: what they raise becomes one line that says which of
picture, question and model is to blame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from fsr.asking.images import MAX_PIXELS, bundled_scene
from fsr.asking.rgb import to_rgb
from fsr.errors import FSRError, PictureError, QuestionError, UsageError
from fsr.signals.question import check_characters

__all__ = ["Pictures", "chat_batch", "chat_inputs", "listed"]

Pictures = Image.Image | Sequence[Image.Image]  # of one question


def listed(pictures: Pictures) -> list[Image.Image]:
    """The pictures of one question as a list."""
    return [pictures] if isinstance(pictures, Image.Image) else list(pictures)


def chat_inputs(processor: Any, image: Pictures, question: str) -> dict[str, Any]:
    """One user turn with a picture, or with several in front of the question: see `chat_batch`."""
    return chat_batch(processor, [image], [question])


def chat_batch(processor: Any, images: Sequence[Pictures], questions: Sequence[str]) -> dict[str, Any]:
    """B questions with a picture (or several) each, padded on the left: `input_ids` [B, L] and so on.

    Raises:
        QuestionError: a question is empty or holds a control token. PictureError: the processor would blow a picture up
            beyond `MAX_PIXELS`, or refuses it. UsageError: this processor takes no such turn at all.
    """
    if not all(question.strip() for question in questions):
        raise QuestionError("the question is empty: write what you want to know about the picture.")
    if not getattr(processor, "chat_template", None):
        raise UsageError(
            "this model's processor has no chat template: set processor.chat_template, or use prune() with "
            "a prompt of your own."
        )
    for question in questions:
        check_characters(question)
        _check_words(processor, question)
    pictures = [[to_rgb(image) for image in listed(some)] for some in images]
    for picture in (p for some in pictures for p in some):
        _check_shape(getattr(processor, "image_processor", None), picture)
    try:
        return _inputs(processor, pictures, questions)
    except FSRError:
        raise
    except Exception as error:  # processors and templates raise anything
        raise _blamed(processor, pictures, questions, error) from error


def _inputs(processor: Any, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> dict[str, Any]:
    turns = []
    for some, question in zip(images, questions):
        shown: list[dict[str, Any]] = [{"type": "image", "image": image} for image in some]
        turns.append([{"role": "user", "content": [*shown, {"type": "text", "text": question}]}])
    # A single prompt needs no padding, and so no padding token.
    padding = {"padding": True, "padding_side": "left"} if len(turns) > 1 else {}
    return dict(
        processor.apply_chat_template(
            turns,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=padding,
        )
    )


def _blamed(
    processor: Any, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], error: Exception
) -> UsageError | QuestionError:
    """What to tell the user: the same call with a plain question, then with a plain picture too, shows the culprit."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def works(images: Sequence[Sequence[Image.Image]]) -> bool:
        try:
            return bool(_inputs(processor, images, ["what is this?"] * len(images)))
        except Exception:
            return False

    if works(images):
        return QuestionError(f"the model's processor refuses this question ({reason}): word it differently.")
    if works([[bundled_scene()] * len(some) for some in images]):
        return PictureError(f"the model's processor refuses this picture ({reason}): crop or scale it.")
    return UsageError(
        f"the model's processor takes no user turn with a picture ({reason}): check its chat template, tokenizer and "
        "padding token, or use prune() with a prompt of your own."
    )


def _check_words(processor: Any, question: str) -> None:
    """Words that tokenizer or processor would take for something else: the answer would be about another prompt."""
    tokenizer = getattr(processor, "tokenizer", None)
    # Processors look for their placeholders in the text.
    found = {v for k, v in vars(processor).items() if k.endswith("_token") and isinstance(v, str) and v in question}
    special = {str(t): i for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if t.special}
    special |= dict(zip(getattr(tokenizer, "all_special_tokens", []), getattr(tokenizer, "all_special_ids", [])))
    if tokenizer is not None and any(token in question for token in special):
        ids = set(tokenizer(question, add_special_tokens=False)["input_ids"])
        found |= {token for token, i in special.items() if token in question and i in ids}
    if found:
        raise QuestionError(
            f"the question holds {', '.join(map(repr, sorted(found)))}, which this model reads as a control token and "
            "not as text: write it differently, for example with spaces inside."
        )


def _check_shape(image_processor: Any, image: Image.Image) -> None:
    """Before a processor makes gigabytes of a file of a kilobyte: one that scales the short side to a length makes
    length^2 * aspect pixels, one that pads to a square makes the long side squared."""
    width, height = image.size
    long, short = max(width, height), min(width, height)
    edges = getattr(image_processor, "size", None) or {}
    shortest, longest = (_get(edges, name) for name in ("shortest_edge", "longest_edge"))
    made = width * height
    if type(image_processor).__name__.startswith("LlavaImageProcessor") and getattr(image_processor, "do_pad", False):
        made = long * long
    elif (
        shortest
        and not longest
        and getattr(image_processor, "do_resize", True)
        and not getattr(image_processor, "image_grid_pinpoints", None)  # tiles of a grid
    ):
        made = round(shortest * shortest * long / short)
    if made > max(MAX_PIXELS, width * height):
        raise PictureError(
            f"a picture of {width} x {height} pixels would become one of {made / 1e6:.0f} megapixels in this model's "
            "processor: crop it, so that it is less narrow."
        )


def _get(edges: Any, name: str) -> Any:
    return edges.get(name) if isinstance(edges, Mapping) else getattr(edges, name, None)
