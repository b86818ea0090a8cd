"""Pictures with their kept tokens marked. Knows selections and pixels, no models."""

from fsr.drawing.kept_tokens import draw

__all__ = ["draw"]
