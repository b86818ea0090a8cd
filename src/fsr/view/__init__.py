"""Pictures and reports of what was kept, and why."""

from fsr.view.draw import draw

__all__ = ["draw"]
