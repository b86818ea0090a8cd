"""The version, in this one place: the package, the wheel and every report read it here."""

__version__ = "0.2.0"
