"""The page of the demo, in Gradio: controls on the left, the answer and the live report on the right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from fsr.asking.images import bundled_scene
from fsr.demo.models import OfferedModels, method_names
from fsr.demo.sessions import Sessions
from fsr.demo.uploads import Uploads
from fsr.errors import FSRError, PictureError
from fsr.view.comparison import Comparison
from fsr.view.html import Markup, join, tag
from fsr.view.report import render

__all__ = ["CSS", "NONE", "build", "theme"]

NONE = "nothing"
SCENES = 4
QUESTIONS = ["where is the umbrella?", "is there a cow?", "what does the sign say?", "what is right of the bicycle?"]
TITLE = """## What does a vision-language model need to see?
Ask about a picture and watch which of its tokens are kept."""
PICTURE: dict[str, Any] = dict(
    type="filepath", image_mode=None, height=270, sources=["upload", "clipboard"], buttons=[], format="png"
)
GALLERY: dict[str, Any] = dict(
    columns=SCENES, allow_preview=False, interactive=False, buttons=[], format="png", show_label=False, height=104
)
CSS = """
.gradio-container { max-width: 1480px !important; }
#answer { font-size: 1.05rem; line-height: 1.5; } #answer b { font-weight: 650; }
#answer .soft { opacity: 0.72; }
#report iframe {
  width: 100%; height: max(640px, 86vh); border: 1px solid #8884; border-radius: 8px; background: #faf9f6;
}
#picture img { image-rendering: auto; width: 100%; height: 100%; object-fit: contain; }
@media (prefers-color-scheme: dark) { #report iframe { background: #14161a; } }
#scenes .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#scenes .grid-wrap { padding: 6px; }
footer { display: none !important; }
"""
log = logging.getLogger(__name__)


def theme() -> Any:
    """Fonts of the system: the page must not ask the network for any."""
    fonts = ["system-ui", "Segoe UI", "Noto Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="stone", font=fonts, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]
    )


def build(models: OfferedModels, folder: Path) -> tuple[gr.Blocks, Sessions]:
    """The page and its visitors' sessions.

    Args:
        folder: where Gradio keeps uploaded files; pictures from elsewhere are refused.
    """
    sessions = Sessions(models)
    scenes = [bundled_scene(i + 1, models.names[0]) for i in range(SCENES)]
    uploads = Uploads(folder, scenes)

    def respond(
        picture: Any,
        question: str,
        keep: float,
        method: str,
        other: str,
        model: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it as a default value)
    ) -> tuple[str, str, Any]:
        visitor = str(request.session_hash)
        image = uploads.open(picture, visitor)
        names = [method] if other in (NONE, method) else [method, other]
        try:
            comparison = sessions.of(visitor).ask(
                image, question or "", model, names, int(keep), lambda share, text: progress(share, desc=text)
            )
        except PictureError:
            uploads.refuse(picture, visitor)
            raise
        total = comparison.unpruned.selection.total
        fits = gr.update(maximum=total) if keep <= total else gr.update(maximum=total, value=total)
        return answer_html(comparison), report_html(comparison), fits

    def leave(request: gr.Request) -> None:
        sessions.clear(str(request.session_hash))
        uploads.forget(str(request.session_hash))

    def choose(event: gr.SelectData) -> Any:
        return scenes[event.index]

    with gr.Blocks(title="Focus-Scan-Refine", analytics_enabled=False, delete_cache=(120, 1800)) as page:
        gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                picture = gr.Image(scenes[0], label="Picture", elem_id="picture", **PICTURE)
                gallery = gr.Gallery(scenes, label="Bundled scenes", elem_id="scenes", **GALLERY)
                question = gr.Textbox(QUESTIONS[0], label="Question", max_lines=3, elem_id="question")
                examples = gr.Examples([[q] for q in QUESTIONS], question, label="For example", elem_id="examples")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                keep = gr.Slider(1, 144, value=16, step=1, label="Visual tokens to keep", elem_id="keep")
                with gr.Row():
                    names = method_names()
                    method = gr.Dropdown(names, value="fsr", label="Method", elem_id="method", min_width=120)
                    other = gr.Dropdown(
                        [NONE, *names], value=NONE, label="Compare with", elem_id="other", min_width=120
                    )
                model = gr.Dropdown(list(models.names), value=models.names[0], label="Model", elem_id="model")
            with gr.Column(scale=7, min_width=320):
                answer = gr.HTML(elem_id="answer", min_height=60)
                report = gr.HTML(elem_id="report")
        # Inputs as the browser sent them: Gradio itself would open uploads before anything could be refused.
        inputs, outputs = [picture, question, keep, method, other, model], [answer, report, keep]
        run: dict[str, Any] = dict(fn=_kindly(respond), inputs=inputs, outputs=outputs, preprocess=False)
        run |= dict(concurrency_limit=4, concurrency_id="ask")
        asking = [ask.click, question.submit, picture.upload, page.load]
        gr.on([*asking, method.input, other.input, model.input], api_name="ask", **run)
        keep.change(api_name=False, trigger_mode="always_last", **run)  # follows the pointer and the arrow keys
        gallery.select(choose, None, picture, api_name=False, show_progress="hidden").then(api_name=False, **run)
        examples.load_input_event.then(api_name=False, **run)
        page.unload(leave)
    page.queue(max_size=32)
    return page, sessions


def answer_html(comparison: Comparison) -> str:
    """Every answer in one line each."""
    lines = [
        tag(
            "div",
            tag("b", s.text or "(nothing)"),
            tag("span", f" — {s.name}, {s.keep} of {s.selection.total} tokens", cls="soft"),
        )
        for s in comparison.runs
    ]
    whole = comparison.unpruned
    last = tag(
        "div", tag("b", whole.text or "(nothing)"), tag("span", f" — all {whole.keep} tokens", cls="soft"), cls="soft"
    )
    return join([lines, last])


def report_html(comparison: Comparison) -> str:
    """The report inside a frame that may run its own script and nothing else."""
    return tag(
        "iframe",
        Markup(""),
        srcdoc=render(comparison, live=True),
        sandbox="allow-scripts",
        title="What was kept, and why",
    )


def _kindly(respond: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as messages: those made for people as they are, all others in the server's log only."""
    from functools import wraps

    @wraps(respond)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return respond(*args, **kwargs)
        except FSRError as error:
            raise gr.Error(str(error), title="Please check", print_exception=False) from None
        except gr.Error:
            raise
        except Exception:
            log.exception("the demo could not answer")
            message = "Something went wrong here; the log of the server says what."
            raise gr.Error(message, print_exception=False) from None

    return run
