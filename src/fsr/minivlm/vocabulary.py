"""The embedded model's words: one tokenizer for its language model and for its text tower."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fsr.minivlm.scenes import BACKGROUNDS, CLASSES, COLORS, LETTERS, QUADRANTS

__all__ = ["ANSWERS", "CHAT_TEMPLATE", "MAX_QUESTION", "WORDS", "encode_words", "tokenizer"]

SPECIAL = ["<pad>", "<bos>", "<unk>", "<eos>", "<image>"]
NUMBERS = ["one", "two", "three", "four"]
LETTER_WORDS = [c.lower() for c in LETTERS]
FUNCTION = (
    "is there a what color how many are of the where in background does sign say left right above below photo on , ?"
).split()
ANSWERS = ["yes", "no", *NUMBERS, *COLORS, *BACKGROUNDS, *QUADRANTS, *CLASSES, *LETTER_WORDS]
WORDS = [*SPECIAL, *FUNCTION, *ANSWERS]
MAX_QUESTION = 12  # tokens of the longest question, its answer and the end
_ID = {w: i for i, w in enumerate(WORDS)}

# A user turn is the picture and the question, nothing else: the model has 24 things to talk about.
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}"
    "<bos>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% else %} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<eos>{% endif %}{% endfor %}"
)


def encode_words(text: str) -> list[int]:
    """Ids of space-separated words that are all known; used on text that this project writes itself."""
    return [_ID[w] for w in text.split()]


def tokenizer(image: str = "<image>") -> PreTrainedTokenizerFast:
    """Word-level tokenizer; understands plurals of the pictogram names, British spelling, capitals and glued
    question marks. image: how the placeholder of visual tokens is written."""
    vocabulary = {image if w == "<image>" else w: i for w, i in _ID.items()}
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    plural = [normalizers.Replace(f"{c}{'es' if c.endswith('s') else 's'}", c) for c in CLASSES if c != "fish"]
    inner.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            *[normalizers.Replace(a, b) for a, b in (("?", " ? "), (",", " , "), (".", " "), ("colour", "color"))],
            *[normalizers.Replace(a, b) for a, b in (("an apple", "a apple"), ("an umbrella", "a umbrella"))],
            *plural,
        ]
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": image},
        padding_side="left",
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )
