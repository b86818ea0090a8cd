"""The README's picture: two questions about one scene, what FSR keeps for each. `python benchmarks/pictures.py`"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fsr import FSR
from fsr.asking.answer import answer
from fsr.asking.images import bundled_scene
from fsr.asking.load import load
from fsr.drawing import draw

QUESTIONS = ["what color is the umbrella?", "what does the sign say?", "what is in the background?"]


def main() -> None:
    """Ask, draw side by side, save."""
    model, processor = load("mini", "cpu")
    scene = bundled_scene()
    panels = []
    for question in QUESTIONS:
        result = answer(model, processor, scene, question, FSR(keep=16))
        picture = draw(scene, result.selection)
        panel = Image.new("RGB", (picture.width, picture.height + 70), "white")
        panel.paste(picture, (0, 70))
        pen = ImageDraw.Draw(panel)
        pen.text((10, 6), question, fill="black", font=ImageFont.load_default(30))
        pen.text((10, 40), result.text, fill="#444444", font=ImageFont.load_default(24))
        panels.append(panel)
    sheet = Image.new("RGB", (sum(p.width for p in panels) + 24 * (len(panels) - 1), panels[0].height), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i * (panel.width + 24), 0))
    sheet = sheet.resize((1500, round(sheet.height * 1500 / sheet.width)), Image.Resampling.LANCZOS)
    out = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "kept.png"
    sheet.save(out, optimize=True)  # fewer colours turned yellow into orange
    print(out, out.stat().st_size)


if __name__ == "__main__":
    main()
