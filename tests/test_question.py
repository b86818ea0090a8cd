"""The question inside a prompt, for the chat formats of the supported families."""

from __future__ import annotations

import pytest
import torch

import tiny
from fsr import FSR, ClipTwin, QuestionError, prepare, prune
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from fsr.signals.question import cut_question, extract_questions, own_questions, questions_of
from fsr.signals.turn_frame import TurnFrame, turn_frame

VICUNA = TurnFrame("USER: ", " ASSISTANT:")
CHATML = TurnFrame("<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant."
MISTRAL = TurnFrame("[INST] ", " [/INST]")
GEMMA = TurnFrame("<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n")
IDEFICS = TurnFrame("<|im_start|>User: ", "<end_of_utterance>\nAssistant:")


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
            SYSTEM
            + CHATML.before
            + "hi"
            + CHATML.after
            + "yes<|im_end|>\n<|im_start|>user\nwhat is USER's car?"
            + CHATML.after,
        ),
        (MISTRAL, "<s>[INST]  \nwhat is USER's car? [/INST]"),
        (MISTRAL, "<s>[INST] hi [/INST] yes</s>[INST] what is USER's car? [/INST]"),
        (GEMMA, "<bos><start_of_turn>user\n\n\nwhat is USER's car?" + GEMMA.after),
        (IDEFICS, "<|im_start|>User:what is USER's car?<end_of_utterance>\nAssistant:"),
        (TurnFrame("", ""), "what is USER's car?"),
    ],
)
def test_cut(frame, text):
    assert cut_question(text, frame) == "what is USER's car?"


@pytest.mark.parametrize("text", ["what is this?", "Question: what? Answer:"])
def test_no_frame_in_the_text(text):
    assert cut_question(text, VICUNA) is None and cut_question(text, CHATML) is None


# ----------------------------------------------------------------------------------------------------- real templates

PARTS = (
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
)


def asking(text):
    return "{% if add_generation_prompt %}{{ '" + text + "' }}{% endif %}"


def marked(before, after, answer="", begin="", ask=None, user=None):
    """A template of turns: `before` with the role, the parts, `after`."""
    role = "{{ " + (f"({user})" if user else "m['role']") + " }}"
    turn = f"{before % role}{PARTS}" + "{% if m['role'] == 'assistant' %}" + answer + "{% endif %}" + after
    return begin + "{% for m in messages %}" + turn + "{% endfor %}" + asking(ask or before % "assistant")


TOOLED = (
    (  # Qwen2.5's
        "{% for m in messages %}{% if m['role'] == 'tool' %}"
        "{{ '<|im_start|>user\n<tool_response>\n' }}" + PARTS + "{{ '\n</tool_response><|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m['role'] + '\n' }}" + PARTS + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )
    + asking("<|im_start|>assistant\n")
)
UPPER = "m['role'].upper()"
TEMPLATES = {
    "chatml": marked("<|im_start|>%s\n", "<|im_end|>\n"),
    "chatml-system": marked("<|im_start|>%s\n", "<|im_end|>\n", begin=SYSTEM + "<|im_end|>\n"),
    "qwen": TOOLED,
    "llava-hf": marked("%s: ", " ", user=UPPER, ask="ASSISTANT:"),
    "vicuna": marked("%s: ", " ", answer="</s>", user=UPPER, ask="ASSISTANT:"),
    "gemma": marked("<start_of_turn>%s\n", "<end_of_turn>\n", begin="<bos>", ask="<start_of_turn>assistant\n"),
    "llama3": marked("<|start_header_id|>%s<|end_header_id|>\n\n", "<|eot_id|>", begin="<|begin_of_text|>"),
    "smolvlm": marked(
        "%s: ", "<end_of_utterance>\n", begin="<|im_start|>", user="m['role'].capitalize()", ask="Assistant:"
    ),
    "alpaca": marked("### %s:\n", "\n\n", user="m['role'].capitalize()", ask="### Assistant:\n"),
    "phi": marked("<|%s|>\n", "<|end|>\n"),
}
MISTRALS = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] " + PARTS + " [/INST]"
    "{% elif m['role'] == 'tool' %}[TOOL_RESULTS] "
    + PARTS
    + "[/TOOL_RESULTS]{% else %} "
    + PARTS
    + "</s>{% endif %}{% endfor %}"
)
TEMPLATES["mistral"] = MISTRALS


class Bytes:
    """A byte-level processor: everything that a template writes can be decoded again, nothing is special."""

    all_special_tokens: tuple[str, ...] = ()
    IMAGE = 500

    def __init__(self, template):
        self.chat_template = template
        self.tokenizer = self

    def apply_chat_template(self, messages, tokenize=False, add_generation_prompt=False, **_):
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(reason):
            raise ValueError(reason)

        jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        jinja.globals["raise_exception"] = refuse
        return jinja.from_string(self.chat_template).render(
            messages=messages, add_generation_prompt=add_generation_prompt
        )

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode("utf-8", "replace")

    def ids(self, text, tokens=3):
        found = []
        for i, part in enumerate(text.split("<image>")):
            found += [self.IMAGE] * (tokens if i else 0) + list(part.encode())
        return torch.tensor([found])


def turn(role, text="", picture=False):
    return {"role": role, "content": [{"type": "image"}] * picture + ([{"type": "text", "text": text}] if text else [])}


def read(template, chat, ask=True, cut=None):
    processor = Bytes(template)
    text = processor.apply_chat_template(chat, add_generation_prompt=ask)
    ids = processor.ids(text if cut is None else text[:cut])
    found, plain = extract_questions(processor, ids, torch.ones_like(ids), {Bytes.IMAGE})
    assert not plain
    return found[0]


DOG, CAT = "where is the dog?", "and where is the cat?"
ONE = [turn("user", DOG, True)]
TWO = [*ONE, turn("assistant", "left"), turn("user", CAT)]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_last_user_turn_with_and_without_a_generation_prompt(name):
    for ask in (True, False):
        assert read(TEMPLATES[name], ONE, ask) == DOG and read(TEMPLATES[name], TWO, ask) == CAT
        system = [turn("system", "Be brief."), *TWO]
        assert name == "mistral" or read(TEMPLATES[name], system, ask) == CAT
    whole = Bytes(TEMPLATES[name]).apply_chat_template(TWO)
    for words in ("and", "and where is the"):  # cut on the right by max_length
        assert read(TEMPLATES[name], TWO, False, cut=whole.index(words) + len(words)) == words


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_answers_begun_and_finished_are_no_question(name):
    for said in ("It is", "left"):
        answered = [*TWO, turn("assistant", said)]
        assert read(TEMPLATES[name], answered, False) == CAT
        assert name == "mistral" or read(TEMPLATES[name], answered, True) == CAT


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_tool_s_result_is_no_question(name):
    called = [*TWO, turn("assistant", "<tool_call>boxes()</tool_call>"), turn("tool", "two boxes: 2 2")]
    for ask in (True, False):
        assert read(TEMPLATES[name], called, ask) == CAT
        assert read(TEMPLATES[name], [*called, turn("assistant", "left"), turn("user", DOG)], ask) == DOG
    pictured = [*TWO, turn("assistant", "zoom()"), turn("tool", "", True)]
    assert read(TEMPLATES[name], pictured) == CAT
    twice = [*called, turn("assistant", "again()"), turn("tool", "three")]
    assert read(TEMPLATES[name], twice) == CAT
    at_once = [*TWO, turn("tool", "two boxes")]
    assert name in ("mistral",) or read(TEMPLATES[name], at_once) == CAT


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_marks_inside_the_question(name):
    for word in ("USER:", "User:", "ASSISTANT:", "Assistant:", "user", "FUNCTION:"):
        asked = f"what does {word} mean, where is the dog?"
        assert read(TEMPLATES[name], [turn("user", asked, True)]) == asked
        assert read(TEMPLATES[name], [*ONE, turn("assistant", "left."), turn("user", asked)]) == asked


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_two_user_turns_in_a_row_count_the_last(name):
    assert read(TEMPLATES[name], [turn("user", "Look at this.", True), turn("user", DOG)]) == DOG


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_pictures_between_and_behind_words_and_new_lines(name):
    assert read(TEMPLATES[name], [turn("user", f"look at this: {DOG}\nAnd this?", True)]).endswith("dog? And this?")
    template = TEMPLATES[name]
    behind = read(template, [turn("user", DOG + "<image>")])
    assert behind == DOG
    assert read(template, [turn("user", "is <image> like <image> here?")]) == "is like here?"


STRICT = {
    "system first": "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    + TEMPLATES["chatml"],
    "picture first": "{% for m in messages if m['role'] == 'user' %}{% if m['content'][0]['type'] != 'image' %}"
    "{{ raise_exception('picture first') }}{% endif %}{% endfor %}" + TEMPLATES["chatml"],
    "strings": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    + asking("<|im_start|>assistant\n"),
    "no answers": "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('users only') }}{% endif %}"
    "{% endfor %}" + TEMPLATES["chatml"],
    "one turn": "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + TEMPLATES["vicuna"],
}


@pytest.mark.parametrize("name", sorted(STRICT))
def test_templates_that_refuse_the_probe(name):
    processor = Bytes(STRICT[name])
    processor.image_token = "<image>"
    text = "<|im_start|>user\n<image>\nwhere is the dog?<|im_end|>\n<|im_start|>assistant\n"
    if name == "one turn":
        text = "USER: <image>\nwhere is the dog? ASSISTANT:"
    ids = processor.ids(text)
    assert extract_questions(processor, ids, torch.ones_like(ids), {Bytes.IMAGE}) == ([DOG], False)


@pytest.mark.parametrize("template", ["{{ raise_exception('never') }}", "{{ 1 / 0 }}", "{% if %}", "fixed words", ""])
def test_templates_that_render_nothing_leave_all_text(template):
    processor = Bytes(template)
    ids = processor.ids("Q <image> where is the dog?")
    assert extract_questions(processor, ids, torch.ones_like(ids), {Bytes.IMAGE}) == (["Q where is the dog?"], True)


WRITTEN = {
    "qwen3-vl clip": "<0.0 seconds><image><0.1 seconds><image><12.5 seconds><image>",
    "internvl clip": "Frame1: <image>\nFrame2: <image>\nFrame10: <image>\n",
    "gemma3 crops": "Here is the original image \n\n<image>\n\n and here are some crops to help you see better \n\n"
    "<image>\n\n \n\n<image>\n\n",
    "smolvlm tiles": "<fake_token_around_image><row_1_col_1><image><fake_token_around_image><row_1_col_2><image>\n\n"
    "<fake_token_around_image><global-img><image><fake_token_around_image>",
    "smolvlm clip": "You are provided the following series of eight frames from a 0:00:08 [H:MM:SS] video.\n"
    "\nFrame from 00:00:<fake_token_around_image><global-img><image><fake_token_around_image>"
    "\nFrame from 00:01:<fake_token_around_image><global-img><image><fake_token_around_image>\n\n",
}


@pytest.mark.parametrize("written", sorted(WRITTEN))
@pytest.mark.parametrize("name", ["chatml", "llava-hf", "smolvlm", "gemma"])
def test_what_processors_write_around_pictures_is_no_question(name, written):
    assert read(TEMPLATES[name], [turn("user", WRITTEN[written] + "What happens here?")]) == "What happens here?"
    kept = "What is at <0.1 seconds>, in Frame2: or <row_1_col_1>?"  # the user's own words
    assert read(TEMPLATES[name], [turn("user", WRITTEN[written] + kept)]) == kept


# ----------------------------------------------------------------------------------------------------- a real processor


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


def test_without_a_generation_prompt_the_last_turn_counts(processor):
    chat = tiny.chat(("what is the colour of the dog ?", 1), ("where is the cat ?", 0), answers=("red",))
    text = processor.apply_chat_template(chat, tokenize=False)
    made = processor(text=[text], images=[tiny.picture(0)], return_tensors="pt")
    found, plain = extract_questions(processor, made["input_ids"], made["attention_mask"], {4})
    assert found == ["where is the cat ?"] and not plain


def test_frame_of_the_processor(processor):
    frame = turn_frame(processor)
    assert frame.before.strip() == "USER:" and frame.after.strip() == "ASSISTANT:" and frame is turn_frame(processor)
    again = tiny.llava_processor()
    assert turn_frame(again).before.strip() == "USER:"
    again.chat_template = again.chat_template.replace("upper", "lower")
    assert turn_frame(again).before.strip() == "user:"  # another template, another frame


def test_frame_leaves_a_default_system_turn_out():
    """Qwen's template puts a system turn in front of the first user turn only."""
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}" + SYSTEM + "<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    frame = turn_frame(tokenizer)
    assert (frame.before, frame.after) == (CHATML.before, CHATML.after)
    assert frame.end.strip() == "<|im_end|>" and not frame.tool_lead and frame.tool_head.endswith("<|im_start|>tool")


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
    frame = turn_frame(tokenizer)
    assert [p.strip() for p in (frame.before, frame.after)] == ["USER:", "ASSISTANT:"]


def test_no_processor(batch):
    with pytest.raises(QuestionError, match="processor="):
        extract_questions(None, batch["input_ids"], batch["attention_mask"], {4})


@pytest.mark.parametrize("question", [3, 2.5, b"where ?", {"a": "b"}, [1, 2], [b"x", "y"], object(), True])
def test_a_question_that_is_no_text(question, batch):
    with pytest.raises(QuestionError, match="no text"):
        questions_of(None, batch["input_ids"][:2], batch["attention_mask"][:2], [0, 1], question, {4})


@pytest.mark.parametrize("given", [("a ?", "b ?"), ["a ?", "b ?"], iter(["a ?", "b ?"])])
def test_any_row_of_texts(given, batch):
    found, _ = questions_of(None, batch["input_ids"][:2], batch["attention_mask"][:2], [0, 1], given, {4})
    assert found == ["a ?", "b ?"]


def test_a_note_says_when_the_text_tower_cut_the_question(llava, processor, single):
    twin = ClipTwin.from_clip(tiny.clip(tower=llava.model.vision_tower), tiny.word_tokenizer(ends=True), sign=1)
    room = twin.text.config.max_position_embeddings - 2
    for words, pieces in ((room, 1), (room + 1, 2), (5 * room, 5)):
        question = " ".join(["photograph"] * words)
        assert twin.pieces(question) == pieces
        report = prepare(llava, FSR(keep=4), single, question, processor=processor, relevance=twin).report
        said = [n for n in report.notes if "pieces" in n]
        assert bool(said) == (pieces > 1) and all(f"{pieces} pieces" in n for n in said)


def test_each_picture_s_own_turn():
    """Two pictures side by side, a turn without one, a picture behind: each is asked about by its own turn."""
    processor, image = tiny.llava_processor(), tiny.SPECIAL.index("<image>")
    turns = [("where is the cat ?", 2), ("what colour is the dog ?", 0), ("a red car", 1), ("where is it ?", 0)]

    def own(chat):
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return own_questions(processor, processor.tokenizer(text)["input_ids"], {image})

    for shown in (1, 2, 3, 4):
        expected = ["where is the cat ?"] * 2 + ["a red car"] * (shown > 2)
        assert own(tiny.chat(*turns[:shown], answers=("yes", "red", "no")[: shown - 1])) == expected
    assert own(tiny.chat(("where is the cat ?", 0))) == []
    assert own(tiny.chat(("", 1), ("where is it ?", 0), answers=("yes",))) == [""]
    for template in (None, "{% for m in messages %}{% for c in m['content'] %}{{ c.text }}{% endfor %}{% endfor %}"):
        processor.chat_template = processor.tokenizer.chat_template = template
        with pytest.raises(QuestionError, match="does not mark where"):
            own_questions(processor, [image, 7], {image})


@torch.no_grad()
@pytest.mark.parametrize("name", ["mini", "mini-qwen3"])
def test_an_answer_is_no_part_of_the_question(name):
    """A template without a mark behind the user's words: labels tell the answer; without them nothing is guessed."""
    model, own = load(name, "cpu")
    turns = [
        {
            "role": "user",
            "content": [{"type": "image", "image": bundled_scene()}, {"type": "text", "text": "is there a cow?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    inputs = own.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    with prune(model, FSR(keep=16), processor=own) as pruned:
        with pytest.raises(QuestionError, match="does not mark where the user's turn ends"):
            model(**inputs)
        with pytest.raises(QuestionError, match="does not mark where"):
            model(**inputs, labels=inputs["input_ids"].clone())  # all of it is taught
        model(**inputs, labels=labels)
        assert [q.replace(" ", "") for q in pruned.last.questions] == ["isthereacow?"]
        again = turns + turns[:1]
        longer = own.apply_chat_template(again, tokenize=True, return_dict=True, return_tensors="pt")
        model(**longer)
        assert [q.replace(" ", "") for q in pruned.last.questions] == ["isthereacow?"]


def test_a_template_that_marks_the_end_of_a_turn_needs_no_labels(processor):
    """Trainers teach whatever they like, part of the question too: it is read whole."""
    text = processor.apply_chat_template(tiny.chat(("where is the cat ?", 0)), add_generation_prompt=True)
    ids = torch.tensor([processor.tokenizer.encode(text)])
    labels = torch.full_like(ids, -100)
    labels[:, len(ids[0]) // 2 :] = 5
    whole, _ = questions_of(processor, ids, torch.ones_like(ids), [0], None, set())
    taught, _ = questions_of(processor, ids, torch.ones_like(ids), [0], None, set(), labels)
    assert taught == whole and "cat" in whole[0]
