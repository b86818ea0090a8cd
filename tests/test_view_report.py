"""The report and the figures: complete, self-contained, escaped, for every layout of tokens."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from PIL import Image

import families
import fsr
import tiny
from fsr import FSR, ClipTwin
from fsr.cli import main
from fsr.errors import UsageError
from fsr.methods import PaperFSR
from fsr.methods.visionzip import VisionZip
from fsr.signals.clip_twin import save_twin
from fsr.tokens import Geometry, VisualTokens
from fsr.view.canvas import TokenBox, lay_out
from fsr.view.comparison import Comparison, MethodRun, compare_methods, covered, cropped_as_seen, nearest_kept
from fsr.view.curves import mass_curve, radius_curve
from fsr.view.html import Markup, script_json, tag
from fsr.view.maps import _squares
from fsr.view.paper_figures import figure_page, figure_png
from fsr.view.png import report_png
from fsr.view.report import render

NASTY = 'is </script><img src=x onerror="alert(1)"> & <b>there</b> ?'
METHODS = [*(method(keep=keep) for keep in (12, 5) for method in (FSR, VisionZip)), PaperFSR(keep=12)]


class Page(HTMLParser):
    """Elements with attributes, in order; text of the data script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.stray: list[str] = []
        self.feed(text)
        found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
        self.data = json.loads(found[1])

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.stray.append(tag)

    def all(self, element, /, **wanted):
        return [
            a
            for t, a in self.elements
            if t == element and all(a.get(k.replace("_", "-")) == v for k, v in wanted.items())
        ]


@pytest.fixture(scope="module")
def twin(llava):
    return ClipTwin.from_clip(tiny.clip(tower=llava.model.vision_tower), tiny.word_tokenizer(ends=True), sign=1)


@pytest.fixture(scope="module")
def comparisons(llava, processor, twin):
    questions = ["where is the cat ?", NASTY]
    return compare_methods(
        llava, processor, tiny.picture(3), questions, METHODS, name="tiny <llava>", relevance=twin, max_new_tokens=4
    )


@pytest.fixture(scope="module")
def page(comparisons):
    return Page(render(comparisons[0]))


def by_hand(selection, image, question="what is it ?"):
    """A comparison of one selection, as if a model had answered."""
    every = torch.arange(selection.total)
    kept = fsr.Selection(
        rows=every,
        features=torch.zeros(selection.total, 1),
        stage=torch.full_like(every, 3),
        total=selection.total,
        order=every,
        merged_into=torch.full_like(every, -1),
        geometry=selection.geometry,
    )
    run = MethodRun("fsr", "yes", selection, {"prefill": 1.0}, rho=0.9)
    return Comparison(question, "tiny", image, MethodRun("all tokens", "yes", kept, {"prefill": 2.0}), (run,))


def test_gather_answers_like_the_model_itself(comparisons, llava, processor, twin):
    comparison = comparisons[0]
    inputs = tiny.prompts(processor, [tiny.chat((comparison.question, 1))], [tiny.picture(3)])
    prompt = inputs["input_ids"].shape[1]
    plain = llava.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert comparison.unpruned.text == processor.decode(plain[0, prompt:], skip_special_tokens=True).strip()
    for method, run in zip(METHODS, comparison.runs):
        with fsr.prune(llava, method, processor=processor, relevance=twin):
            out = llava.generate(**inputs, question=comparison.question, max_new_tokens=4, do_sample=False)
        assert run.text == processor.decode(out[0, prompt:], skip_special_tokens=True).strip()
    assert len({s.stages_ms["vision_tower"] for c in comparisons for s in (c.unpruned, *c.runs)}) == 1  # encoded once


def test_page_is_well_formed_and_loads_nothing(comparisons, page):
    text = render(comparisons[0])
    assert not page.stray and not page.open
    for name, attributes in page.elements:
        for key in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:image/")), (name, key, value)
    assert not re.search(r"https?://", text) and "@import" not in text
    assert not re.search(r"url\((?!data:)", text)
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["content"]
    assert "default-src 'none'" in policy
    assert len(re.findall(r"data:image/", text)) == 1  # one picture, however many maps


def test_every_kept_token_is_there_once_per_map(comparisons, page):
    rects = page.all("rect")
    for view, run in enumerate(comparisons[0].runs):
        told = page.data["views"][view]
        assert sorted(map(int, told["order"])) == run.selection.rows.tolist()
        assert [i for i, r in enumerate(told["role"]) if r in "fsmw"] == run.selection.rows.tolist()
    tokens = [int(r["data-token"]) for r in rects if r.get("data-token")]
    for row in range(tiny.TOKENS):
        # Every view once in the side-by-side part, and FSR's once more as the last of its steps.
        wanted = sum(row in s.selection.rows.tolist() for s in comparisons[0].runs)
        wanted += sum(row in s.selection.rows.tolist() for s in comparisons[0].runs if s.name == "fsr")
        assert tokens.count(row) == wanted
    for row, box in page.data["spots"].items():
        x, y = int(row) % 6 * 1000 / 6, int(row) // 6 * 1000 / 6
        assert box == pytest.approx([x, y, 1000 / 6, 1000 / 6], abs=0.01)


def test_scores_in_the_page_are_those_of_the_selection(comparisons, page):
    comparison = comparisons[0]
    told = page.data["cases"][0]
    assert told["saliency"] == pytest.approx(comparison.runs[0].selection.saliency.tolist(), rel=1e-3)
    assert told["relevance"] == pytest.approx(comparison.runs[0].selection.relevance.tolist(), rel=1e-3, abs=1e-6)
    first = page.data["views"][0]
    assert first["priority"] == pytest.approx(comparison.runs[0].selection.priority.tolist(), rel=1e-3, abs=1e-6)
    merged = {int(i): a for i, a in first["into"].items()}
    wanted = {i: a for i, a in enumerate(comparison.runs[0].selection.merged_into.tolist()) if a >= 0}
    assert merged == wanted


def test_what_a_user_typed_stays_text(comparisons):
    text = render(comparisons[1])
    page = Page(text)
    assert not page.all("img") and not page.all("b", onerror="alert(1)") and "<b>there" not in text
    assert "is &lt;/script&gt;&lt;img" in text and "tiny &lt;llava&gt;" in text
    assert text.count("</script>") == 2
    assert "<" not in script_json({"x": "</script>"})
    assert tag("p", "<i>", Markup("<i></i>"), title='"<') == '<p title="&quot;&lt;">&lt;i&gt;<i></i></p>'


def test_maps_have_words_for_those_who_cannot_see_them(page):
    pictures = [a for t, a in page.elements if t == "svg" and a.get("aria-hidden") != "true"]
    assert len(pictures) > 12 and all(a.get("role") == "img" and len(a.get("aria-label", "")) > 5 for a in pictures)
    assert all(a.get("tabindex") == "0" for a in pictures if "data-view" in a)
    assert page.all("div", role="status", aria_live="polite")
    assert page.all("html", lang="en") and page.all("meta", name="viewport")
    assert all(page.all("label", **{"for": i["id"]}) for i in page.all("input"))


def test_curves_say_what_the_selection_says(comparisons):
    run = comparisons[0].runs[0]
    s = run.selection
    assert run.rho is None and mass_curve(run) is None  # no share of the mass stops a Focus by volume
    assert len(run.covered) == s.n_focus and list(run.covered) == sorted(run.covered)
    run = replace(run, rho=0.9)  # as a distinct Focus has it
    assert f"Focus takes {s.n_focus} of {s.kept}" in mass_curve(run) and "ρ = 0.9" in mass_curve(run)
    run = next(c for c in comparisons[0].runs if c.name == "fsr-paper")
    s = run.selection
    assert f"Focus takes {s.n_focus} of {s.kept}" in mass_curve(run) and "90 %" in mass_curve(run)
    phi = s.priority.sort(descending=True).values.double()
    held = phi.cumsum(0) / phi.sum()
    assert held[s.focus_wanted - 1] >= 0.9 - 1e-6 and (s.focus_wanted == 1 or held[s.focus_wanted - 2] < 0.9)
    assert mass_curve(comparisons[0].runs[1]) is None and radius_curve(comparisons[0].runs[1]) is None
    if s.n_scan:
        assert f"in {s.n_scan} scan steps" in radius_curve(run)


@pytest.mark.parametrize("per", ["image", "tile"])
def test_what_focus_covers(per):
    g = torch.Generator().manual_seed(0)
    places = torch.arange(24)
    tokens = VisualTokens(
        features=torch.randn(24, 6, generator=g),
        saliency=torch.rand(24, generator=g),
        relevance=torch.rand(24, generator=g),
        geometry=Geometry(torch.rand(24, 4, generator=g), places // 12, torch.zeros_like(places)),
    )
    (s,) = FSR(keep=8, per=per, max_focus=0.5)([tokens])
    found = covered(s, tokens.features)
    focus = s.rows[s.stage == fsr.Stage.FOCUS]
    unit = torch.nn.functional.normalize(tokens.features, dim=-1)
    gap = (1 - unit @ unit[focus].T).clamp(0, 1).amin(1)
    gap[focus] = 0
    assert len(found) == s.n_focus == len(focus) and s.n_scan > 0
    assert found[-1] == pytest.approx(1 - float((gap * s.priority).sum() / s.priority.sum()), abs=1e-5)


def test_nearest_kept_token_by_cosine():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.2], [1.0, 0.0]])
    nearest, likeness = nearest_kept(features, torch.tensor([2, 4]))
    assert nearest.tolist() == [4, 4, 2, 2, 4] and likeness[0] == 1.0 and likeness[2] == 1.0
    assert float(likeness[1]) == pytest.approx(0.9 / (0.9**2 + 0.1**2) ** 0.5)


def test_the_model_saw_only_the_middle(processor):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    seen = cropped_as_seen(processor, wide)
    assert seen.size == (100, 100) and seen.getcolors() == [(10000, (0, 0, 255))]


@pytest.mark.parametrize("family", ["llava-next", "qwen2.5-vl", "internvl", "smolvlm"])
def test_tiles_and_dynamic_grids_are_drawn_where_they_belong(family):
    report = fsr.prepare(
        families.model_of(family), FSR(keep=8, relevance="none"), families.prompts(family, [(2, 0)])
    ).report
    for s in report.selections:
        image = Image.new("RGB", (90, 60), "green")
        canvas = lay_out(image, s.geometry)
        patches = (~s.geometry.boxes.isnan().any(-1)).nonzero()[:, 0].tolist()
        assert sorted(canvas.boxes) == patches and len(set(canvas.names.values())) == len(patches)
        for row, box in canvas.boxes.items():
            tile = int(s.geometry.tile[row])
            place = canvas.placed[0 if len(canvas.placed) == 1 or tile == 0 else 1]
            x0, _, _, y1 = s.geometry.boxes[row].tolist()
            assert box.x == pytest.approx(place.x + x0 * place.w, abs=0.01)
            assert box.y + box.h == pytest.approx(place.y + y1 * place.h, abs=0.01)
        assert not Page(render(by_hand(s, image))).stray
        assert report.show(image).size[0] >= 100 and report.show().size[0] >= 100


def test_frames_of_a_clip_lie_in_a_grid_with_their_own_pictures():
    report = fsr.prepare(
        families.model_of("qwen2.5-vl"), FSR(keep=6, relevance="none"), families.prompts("qwen2.5-vl", [(0, 1)])
    ).report
    (s,) = report.selections
    frames = [Image.new("RGB", (60, 40), c) for c in ("red", "red", "blue", "blue")]
    canvas = lay_out(frames, s.geometry)
    assert [p.title for p in canvas.placed] == ["frame 0", "frame 1"] and len(canvas.pictures) == 2
    page = Page(render(by_hand(s, frames)))
    assert not page.stray and len(page.all("image")) == 2
    with pytest.raises(UsageError, match="no picture 1"):
        report.show(frames, 1)


def test_figures(llava, processor, twin, tmp_path):
    image, questions = tiny.picture(3), ["is there a dog ?", "where is the cat ?"]
    options = dict(relevance=twin, max_new_tokens=2)
    one = compare_methods(llava, processor, image, questions, [FSR(keep=12)], **options)
    page = Page(figure_page(1, one))
    assert not page.stray and len(page.all("section", **{"class": "row"})) == 2
    assert len(page.all("svg", role="img")) == 8 and len(page.data["views"]) == 2
    two = compare_methods(llava, processor, image, questions[:1], [FSR(keep=9), VisionZip(keep=9)], **options)
    page = Page(figure_page(2, two))
    assert len(page.all("svg", role="img")) == 3 and "visionzip" in figure_page(2, two)
    wide, narrow = figure_png(1, one, cell=120), figure_png(2, two, cell=120)
    assert wide.width > narrow.width and wide.height > narrow.height
    assert report_png(one[0], cell=120).width >= 480
    with pytest.raises(UsageError, match="two questions"):
        figure_page(1, one[:1])
    with pytest.raises(UsageError, match="equal budgets"):
        figure_page(2, compare_methods(llava, processor, image, questions[:1], METHODS, **options))


def test_command_writes_files_and_refuses_nonsense(llava, processor, twin, tmp_path, capsys):
    llava.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    save_twin(tmp_path / "model", twin)
    picture = tmp_path / "cat.png"
    tiny.picture(2).save(picture)
    words = ["--model", str(tmp_path / "model"), "--image", str(picture), "--device", "cpu"]
    page, png = tmp_path / "report.html", tmp_path / "report.png"
    more = ["--methods", "fsr,fsr:alpha=0", "--keep", "9,4", "--out", str(page), "--png", str(png)]
    status = main(["view", "where is the cat ?", *words, *more])
    assert status == 0 and str(page) in capsys.readouterr().out
    views = Page(page.read_text(encoding="utf-8")).data["views"]
    assert [(v["name"], v["keep"]) for v in views] == [(n, k) for k in (9, 4) for n in ("fsr", "fsr:alpha=0")]
    assert Image.open(png).width > 400
    status = main(
        ["view", "is there a cat ?", "where is it ?", *words, "--figure", "1", "--keep", "9", "--out", str(page)]
    )
    assert status == 0 and "two questions" in page.read_text(encoding="utf-8")
    wrong = [
        (["where ?", "--keep", "0"], "at least 1"),
        (["where ?", "--methods", "nosuch"], "unknown method"),
        (["where ?", "--methods", "fsr,fastv:layer=3"], "`fsr ask --method fastv:layer=3`"),
        (["where ?", "--methods", "fsr|fastv"], "FSR(...) | FastV(...)"),
        (["where ?", "what ?"], "one question"),
        (["where ?", "--figure", "1"], "two questions"),
        (["where ?", "--out", str(tmp_path / "no" / "x.html")], "cannot write"),
        (["where ?", "--png", "x.gif"], "cannot write"),
        (["where ?", "--image", str(tmp_path / "none.png")], "no file"),
        (["  "], "question is empty"),
    ]
    for extra, message in wrong:
        capsys.readouterr()
        assert main(["view", *words, *extra]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, (extra, err)


def test_without_a_text_tower_there_is_no_relevance_to_show(llava, processor):
    (comparison,) = compare_methods(
        llava, processor, tiny.picture(3), ["where ?"], [FSR(keep=9)], relevance="none", max_new_tokens=2
    )
    assert comparison.score("relevance") is None
    page = Page(render(comparison))
    assert page.data["cases"][0]["relevance"] is None and not any(
        "relevance" in a.get("aria-label", "") for _, a in page.elements
    )


def test_neighbouring_squares_share_their_edges():
    spots = [TokenBox(1000 / 7 * i, 0.0, 1000 / 7, 1000 / 7) for i in range(7)]
    found = re.findall(r"M([\d.]+) 0h([\d.]+)v", _squares(spots))
    edges = [(float(x), round(float(x) + float(w), 1)) for x, w in found]
    assert len(edges) == 7 and all(a[1] == b[0] for a, b in pairwise(edges)) and edges[-1][1] == 1000


class ByHand:
    """A processor of Qwen2.5-VL without torchvision: pixels by its image processor, the prompt as token numbers."""

    chat_template = "by hand"

    def __init__(self) -> None:
        from transformers import AutoImageProcessor  # noqa: F401 (registers the processors)
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=16 * 16, max_pixels=48 * 48, size=None
        )

    def apply_chat_template(self, turns, **_):
        image = turns[0][0]["content"][0]["image"]
        seen = self.image_processor(images=[image], return_tensors="pt")
        count = int(seen["image_grid_thw"].prod()) // 4
        ids = [1, families.OPEN, *[families.IMAGE] * count, families.CLOSE, 9, 30, 31]
        types = [int(i == families.IMAGE) for i in ids]
        return {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
            "mm_token_type_ids": torch.tensor([types]),
            **seen,
        }

    def decode(self, ids, **_):
        return " ".join(map(str, ids.tolist()))


def test_qwen_from_picture_to_page():
    model, processor = families.model_of("qwen2.5-vl"), ByHand()
    image = tiny.picture(2).resize((96, 64))
    methods = [FSR(keep=0.2, relevance="none")]
    (comparison,) = compare_methods(
        model, processor, image, ["what is it ?"], methods, relevance="none", max_new_tokens=5
    )
    inputs = processor.apply_chat_template([[{"content": [{"image": image}]}]])
    out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert comparison.unpruned.text == processor.decode(out[0, inputs["input_ids"].shape[1] :])
    with fsr.prune(model, methods[0], relevance="none"):
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert comparison.runs[0].text == processor.decode(out[0, inputs["input_ids"].shape[1] :])
    page = Page(render(comparison))
    grid = comparison.unpruned.selection.geometry.grid
    assert grid and grid[1] > grid[0]  # the picture is wide, and so is the grid
    assert len(page.data["spots"]) == grid[0] * grid[1] == comparison.unpruned.selection.total
