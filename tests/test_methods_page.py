"""docs/methods.md says what the docstrings say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_up_to_date():
    done = subprocess.run([sys.executable, "benchmarks/methods_page.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run: python benchmarks/methods_page.py"
