"""The question inside a prompt, for the chat formats of the supported families."""

from __future__ import annotations

import pytest

import tiny
from fsr import QuestionError
from fsr.signals.question import cut_question, extract_questions, turn_frame

VICUNA = ("USER: ", " ASSISTANT:")
CHATML = ("<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant."
MISTRAL = ("[INST] ", " [/INST]")
GEMMA = ("<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n")
IDEFICS = ("<|im_start|>User: ", "<end_of_utterance>\nAssistant:")


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (VICUNA, "<s> USER:  \nwhat is USER's car? ASSISTANT:"),
        (VICUNA, "USER: hi ASSISTANT: hello</s>USER: what is USER's car? ASSISTANT:"),
        (VICUNA, "A chat.\n\nUSER: what is USER's car? ASSISTANT:"),
        (VICUNA, "USER: what is USER's car? ASSISTANT: red</s>"),  # scoring an answer
        (CHATML, "<|im_start|>user\nwhat is USER's car?<|im_end|>\n<|im_start|>assistant\n"),
        (CHATML, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nwhat is USER's car?<|im_end|>\n"),
        (
            CHATML,
            SYSTEM + CHATML[0] + "hi" + CHATML[1] + "yes<|im_end|>\n<|im_start|>user\nwhat is USER's car?" + CHATML[1],
        ),
        (MISTRAL, "<s>[INST]  \nwhat is USER's car? [/INST]"),
        (MISTRAL, "<s>[INST] hi [/INST] yes</s>[INST] what is USER's car? [/INST]"),
        (GEMMA, "<bos><start_of_turn>user\n\n\nwhat is USER's car?" + GEMMA[1]),
        (IDEFICS, "<|im_start|>User:what is USER's car?<end_of_utterance>\nAssistant:"),
        (("", ""), "what is USER's car?"),
    ],
)
def test_cut(frame, text):
    assert cut_question(text, *frame) == "what is USER's car?"


@pytest.mark.parametrize("text", ["what is this?", "Question: what? Answer:"])
def test_no_frame_in_the_text(text):
    assert cut_question(text, *VICUNA) is None and cut_question(text, *CHATML) is None


def rows(processor, chats, pictures=1):
    inputs = tiny.prompts(processor, chats, [tiny.picture(i) for i in range(pictures)])
    return inputs["input_ids"], inputs["attention_mask"]


def test_from_ids_with_padding_pictures_and_turns(processor):
    chats = [
        tiny.chat(("what colour is the dog ?", 1), ("and the cat ?", 1), answers=("red",)),
        tiny.chat(("where is the big red car ?", 1)),
    ]
    found, plain = extract_questions(processor, *rows(processor, chats, 3), {4})
    assert found == ["and the cat ?", "where is the big red car ?"] and not plain


def test_frame_of_the_processor(processor):
    before, after = turn_frame(processor)
    assert before.strip() == "USER:" and after.strip() == "ASSISTANT:"


def test_frame_leaves_a_default_system_turn_out():
    """Qwen's template puts a system turn in front of the first user turn only."""
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}" + SYSTEM + "<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert turn_frame(tokenizer) == CHATML


def test_without_template_all_text_is_taken(processor):
    tokenizer = tiny.word_tokenizer()
    assert turn_frame(tokenizer) is None
    ids = tokenizer(["<image> <image> where is the dog ?"], return_tensors="pt")
    found, plain = extract_questions(tokenizer, ids["input_ids"], ids["attention_mask"], {4})
    assert found == ["where is the dog ?"] and plain


def test_prompt_outside_the_template(processor):
    ids = processor.tokenizer(["where is the dog ?"], return_tensors="pt")
    found, plain = extract_questions(processor, ids["input_ids"], ids["attention_mask"], {4})
    assert found == ["where is the dog ?"] and plain


def test_tokenizer_with_a_template_of_its_own():
    tokenizer = tiny.word_tokenizer()
    turns = "{% for m in messages %}{{ m['role'].upper() }}: {{ m['content'] }} {% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    assert [p.strip() for p in turn_frame(tokenizer)] == ["USER:", "ASSISTANT:"]


def test_no_processor(batch):
    with pytest.raises(QuestionError, match="processor="):
        extract_questions(None, batch["input_ids"], batch["attention_mask"], {4})
