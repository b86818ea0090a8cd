"""The house keeps its layers: imports only point down, no circle, small files, and the pages that draw it are true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "fsr"
PYPROJECT = ROOT / "pyproject.toml"
LONGEST_FILE = 300
ROOT_FILES = 6


def lint(source: Path) -> subprocess.CompletedProcess[str]:
    """import-linter with the contracts of pyproject.toml on the package in `source`."""
    call = f"lint_imports({str(PYPROJECT)!r}, no_cache=True)"
    code = f"import sys; from importlinter.cli import lint_imports; sys.exit({call})"
    environment = {**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=source)


def test_every_contract_is_kept():
    done = lint(ROOT / "src")
    assert done.returncode == 0 and " 0 broken" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_linter_sees_what_it_should(tmp_path):
    """A copy of the tree with one wrong import of every kind: each contract speaks up."""
    for file in SOURCE.rglob("*.py"):
        target = tmp_path / "fsr" / file.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    wrong = {
        "stages/scan.py": "def f():\n    from fsr.methods.fsr import FSR",  # upwards, and in a function
        "methods/random.py": "from fsr.adapters.base import Adapter\nimport transformers",
        "adapters/llava.py": "from fsr.methods.base import Method",
        "methods/in_llm.py": "import fsr.methods.parts",  # a circle
        "asking/load.py": "import gradio\nimport fsr",
    }
    for name, line in wrong.items():
        file = tmp_path / "fsr" / name
        file.write_text(f"{file.read_text()}\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode != 0 and re.search(r"\b0 kept, [5-9] broken", done.stdout), done.stdout[-3000:]


def test_no_file_is_too_long_to_read():
    lengths = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in SOURCE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_every_folder_is_a_package_and_the_root_is_small():
    folders = {f.parent for f in SOURCE.rglob("*.py")}
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []
    assert len(list(SOURCE.glob("*.py"))) <= ROOT_FILES


# ------------------------------------------------------------------------------------------------------- the drawings


def trees(page: Path) -> list[list[tuple[int, str]]]:
    """Every drawn tree of a Markdown page, as (depth, path) line by line."""
    found = []
    for block in re.findall(r"^```text\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        lines = [re.match(r"((?:[│ ]   )*(?:[├└]── )?)([\w./-]+)", line) for line in block.splitlines()]
        found.append([(len(m[1]) // 4, m[2]) for m in lines if m])
    return found


def imports_of(file: Path) -> set[Path]:
    """Files of the package that this one imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for parts in (name.split(".") for name in names):
            if parts[0] == "fsr":
                module = SOURCE.joinpath(*parts[1:])
                found |= {f for f in (module.with_suffix(".py"), module / "__init__.py") if f.is_file()}
    return found


def module_at(path: str) -> Path:
    return SOURCE / path / "__init__.py" if path.endswith("/") else SOURCE / path


FLOW = ROOT / "docs" / "how-a-call-flows.md"


def test_the_flow_is_drawn_as_the_modules_import_each_other():
    drawn = 0
    for tree in trees(FLOW):
        above: list[Path] = []
        for depth, path in tree:
            if path == "src/fsr/":
                continue
            file = module_at(path)
            assert file.is_file(), f"{path} is drawn and does not exist"
            above[depth:] = [file]
            if depth:
                assert file in imports_of(above[depth - 1]), f"{above[depth - 1]} does not import {path}"
                drawn += 1
    assert drawn > 30


def test_the_whole_pipeline_is_on_the_page():
    text = FLOW.read_text(encoding="utf-8")
    parts = [f.relative_to(SOURCE).as_posix() for f in (SOURCE / "pipeline").rglob("*.py") if f.name != "__init__.py"]
    assert [p for p in parts if p not in text] == []


def test_the_layout_in_contributing_is_the_tree():
    (tree,) = trees(ROOT / "CONTRIBUTING.md")
    listed, above = set(), [""]
    for depth, name in tree:
        above[depth:] = [name]
        path = "".join(above)
        assert (ROOT / path).exists(), f"{path} is in the tree of CONTRIBUTING and does not exist"
        listed.add(path.rstrip("/"))
    rooms = {f.parent.relative_to(ROOT).as_posix() for f in SOURCE.glob("*/__init__.py")}
    files = {f.relative_to(ROOT).as_posix() for folder in (SOURCE, SOURCE / "pipeline") for f in folder.glob("*.py")}
    assert (rooms | {f for f in files if not f.endswith("__.py")}) - listed == set()
