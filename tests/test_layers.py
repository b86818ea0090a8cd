"""The house keeps its layers: imports only point down, no circle, small files, and the pages that draw it are true."""

from __future__ import annotations

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
BEING_SPLIT = {"src/fsr/pipeline/prepare.py"}


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
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE and name not in BEING_SPLIT} == {}


def test_every_folder_is_a_package_and_the_root_is_small():
    folders = {f.parent for f in SOURCE.rglob("*.py")}
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []
    assert len(list(SOURCE.glob("*.py"))) <= ROOT_FILES
