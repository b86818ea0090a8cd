"""The documentation tells the truth: links lead somewhere, code compiles and runs, tables name what exists.

In Markdown, `<!-- runs -->` above a Python block means that it is executed here, `<!-- runs on mini -->` that it needs
the embedded model, `<!-- runs with TRL -->` that tests/test_training.py executes it, and
`<!-- prints -->` above a text block that it is what the block before printed. Blocks of a page
share their names.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from fsr import FSR
from fsr.methods import available

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(p.relative_to(ROOT)) for p in PAGES]
FENCE = re.compile(r"(?:^<!-- (?P<mark>[\w ]+) -->\n)?^```(?P<lang>\w*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
MINI = (files("fsr.minivlm") / "data" / "mini" / "config.json").is_file()


def blocks(page: Path) -> list[dict[str, str]]:
    return [m.groupdict(default="") for m in FENCE.finditer(page.read_text(encoding="utf-8"))]


def anchors(page: Path) -> set[str]:
    """What a link to this page may end with: its headings, and the objects whose docstrings it shows."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+?)\s*$", text, re.M)
    slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", t.lower()).strip()) for t in titles}
    return slugs | set(re.findall(r"^::: ([\w.]+)", text, re.M))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_internal_links(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [t for t in LINK.findall(text) if not re.match(r"[a-z]+:", t)]
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading, only {sorted(anchors(file))}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_compile_and_import_what_exists(page):
    for block in blocks(page):
        if block["lang"] not in ("python", "py"):
            continue
        tree = ast.parse(block["code"], filename=str(page))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fsr":
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "fsr":
                        importlib.import_module(alias.name)


# One process for all pages, but not this one: examples register methods, which other tests would then try out.
DRIVER = """
import contextlib, io, json, sys, traceback
import torch
torch.set_num_threads(1)
out = {}
for name, parts in json.load(sys.stdin).items():
    names, printed = {"__name__": "page"}, []
    for code in parts:
        text = io.StringIO()
        try:
            with contextlib.redirect_stdout(text):
                exec(compile(code, name, "exec"), names)
        except Exception:
            printed.append("failed: " + traceback.format_exc())
            break
        printed.append(text.getvalue())
    out[name] = printed
json.dump(out, sys.stdout)
"""


def runnable(page: Path) -> list[str]:
    marks = ["runs", "runs on mini"] if MINI else ["runs"]
    return [b["code"] for b in blocks(page) if b["mark"] in marks]


@pytest.fixture(scope="module")
def printed():
    jobs = {name: runnable(page) for name, page in zip(NAMES, PAGES)}
    jobs = {name: codes for name, codes in jobs.items() if codes}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(jobs), capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [n for n, p in zip(NAMES, PAGES) if runnable(p)])
def test_marked_blocks_run_and_print_what_they_say(name, printed):
    found = blocks(ROOT / name)
    if not MINI and any(b["mark"] == "runs on mini" for b in found):
        pytest.skip("the weights of the embedded model are not in this tree: examples on it were NOT run")
    outputs = iter(printed[name])
    last = ""
    for block in found:
        if block["mark"] in ("runs", "runs on mini"):
            last = next(outputs)
            assert not last.startswith("failed: "), last
        elif block["mark"] == "prints":
            assert last == block["code"]


def test_every_mark_is_known():
    for page in PAGES:
        for mark in re.findall(r"^<!-- (runs.*?|prints.*?) -->$", page.read_text(encoding="utf-8"), re.M):
            assert mark in ("runs", "runs on mini", "runs with TRL", "prints"), f"{page.name}: {mark}"


def test_options_table_is_the_class():
    """`docs/usage.md` lists every option of FSR with its default."""
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text.split("## Options of FSR")[1].split("\n## ")[0], re.M))
    assert {k: ast.literal_eval(v) for k, v in rows.items()} == {f.name: f.default for f in dataclasses.fields(FSR)}


def test_command_table_is_the_command_line():
    from fsr.cli import COMMANDS

    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8").split("## Command line")[1]
    assert set(re.findall(r"^\| `fsr (\w+)", text, re.M)) == set(COMMANDS)


def test_the_declared_api_and_the_api_pages_agree():
    """What a page shows is in `__all__` of its module, and what the public packages declare is on a page."""
    shown: dict[str, str] = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        shown |= dict.fromkeys(re.findall(r"^::: ([\w.]+)", page.read_text(encoding="utf-8"), re.M), page.name)
    # Modules that are shown with all they hold.
    whole = {p for p in shown if (files("fsr").joinpath(*p.split(".")[1:-1]) / f"{p.rpartition('.')[2]}.py").is_file()}
    for path in set(shown) - whole:
        module, _, name = path.rpartition(".")
        assert name in importlib.import_module(module).__all__, f"{shown[path]} shows {path}, which is not declared"
    names = {path.rpartition(".")[2] for path in shown}
    names |= {name for module in whole for name in importlib.import_module(module).__all__}
    names |= {cls.__name__ for cls in available().values()}  # cards in docs/methods.md, see test_methods_page.py
    for package in ("fsr", "fsr.adapters", "fsr.drawing", "fsr.kernels", "fsr.methods"):
        declared = {n for n in importlib.import_module(package).__all__ if not n.startswith("__")}
        assert declared - names == set(), f"{package} declares what no API page shows"


def test_site_is_built_and_loads_nothing_from_the_network(tmp_path):
    if find_spec("zensical") is None or find_spec("mkdocstrings_handlers") is None:
        pytest.skip("the extra `docs` is not installed (pip install -e '.[docs]'): the site was NOT built")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    built = {p.relative_to(tmp_path / "site").as_posix(): p.read_text() for p in (tmp_path / "site").rglob("*.html")}
    for page in set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "pictures" / "README.md"}:
        assert page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() in built
    for name, text in built.items():
        loads = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"'\s>]+)", text)
        loads += re.findall(
            r"<link\b(?=[^>]*rel=[\"']?(?:stylesheet|preload|icon|preconnect))[^>]*href=[\"']?([^\"'\s>]+)", text
        )
        assert not [u for u in loads if re.match(r"(?:https?:)?//", u)], name
    assert "Make a model's own" in built["api/verb.html"]  # docstrings arrived


def test_readme_holds_the_numbers_of_the_results():
    """`python benchmarks/readme.py` would change nothing; the table stays short."""
    spec = spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    result, crowded = (
        json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("plane", "plane_crowded")
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, inner in (
        ("table", script.accuracy_table(result)),
        ("verdict", script.verdict(result, crowded)),
        ("peers", str(len(script.peers()))),
    ):
        assert script.between(text, name, inner) == text, f"{name}: run `python benchmarks/readme.py`"
    assert len(script.accuracy_table(result).splitlines()) <= 2 + 9 and len(text.splitlines()) < 90
