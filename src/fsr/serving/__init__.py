"""Doors to the engines that people deploy on; each is an extra and imports its engine only when asked."""
