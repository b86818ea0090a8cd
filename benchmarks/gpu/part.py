"""What all steps share: their command line, and a result file that is written anew after every part."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Parts:
    """The result of one step, part by part.

    `run(name, work)` keeps what `work` returns under `name`. A part that fails (too little memory, a kernel that does
    not compile) is kept as {"error": ...} and the next one runs; once the time is over, the rest is named as skipped.
    """

    def __init__(self, description: str) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--seconds", type=float, default=120.0, help="no new part starts after that")
        parser.add_argument("--pretend", action="store_true", help="tiny sizes on the CPU")
        args = parser.parse_args()
        self.out, self.pretend = args.out, args.pretend
        self.device = torch.device("cpu" if args.pretend else "cuda")
        self.end = time.monotonic() + args.seconds
        self.result: dict[str, Any] = {}
        self.failed = False
        if not args.pretend and not torch.cuda.is_available():
            raise SystemExit("no CUDA device is visible to torch: use --pretend to try the steps on a CPU.")

    @property
    def left(self) -> float:
        """Seconds until no new part may start."""
        return self.end - time.monotonic()

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Do one part, write the file, and return what it found (None if it failed or had no time)."""
        if self.left <= 0:
            self.result[name] = {"skipped": "no time left"}
            return self._write(None)
        began = time.monotonic()
        try:
            found = work()
            self.result[name] = found
        except Exception as error:  # whatever it is, the other parts must run; the step still ends with status 1
            found = None
            self.failed = True
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            self.result[name] = {"error": line, "traceback": traceback.format_exc()[-2000:]}
            print(f"{name}: {line}", flush=True)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._write(found)

    def _write(self, found: Any) -> Any:
        self.out.write_text(json.dumps(self.result, indent=1, default=str) + "\n", encoding="utf-8")
        return found
