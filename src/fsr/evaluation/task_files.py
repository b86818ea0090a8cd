"""Write the tasks of this package where `--include_path` of lmms-eval finds them; beside them the embedded benchmark's
rows and the system prompt of LLaVA's protocol.

The files that change one of lmms-eval's own tasks include it, so that data set names and prompts stay those of the
installed release; the path of that release is filled in here.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from fsr.errors import UsageError
from fsr.evaluation.question_set import QuestionSet
from fsr.evaluation.tasks.mini import write_rows

__all__ = ["ROWS", "write_tasks"]

ROWS = "fsr_mini.parquet"
_STANDS_FOR = "lmms_eval/tasks/"  # in `include:` lines


def write_tasks(folder: Path, questions: QuestionSet) -> list[str]:
    """Fill `folder`, which is made where it is missing; returns the names of the files.

    Raises:
        UsageError: lmms-eval is not installed, or the folder cannot be written.
    """
    found = find_spec("lmms_eval")
    if found is None or not found.submodule_search_locations:
        raise UsageError("these tasks extend those of lmms-eval, which is not installed: pip install 'fsr-vlm[eval]'.")
    own = f"{Path(found.submodule_search_locations[0]).as_posix()}/tasks/"
    names = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(files("fsr.evaluation.tasks").iterdir(), key=lambda f: f.name):
            if source.name.endswith(("yaml", ".txt")):
                text = source.read_text(encoding="utf-8").replace(_STANDS_FOR, own)
                (folder / source.name).write_text(text, encoding="utf-8")
                names.append(source.name)
        write_rows(questions, folder / ROWS)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}.") from error
    return [*names, ROWS]
