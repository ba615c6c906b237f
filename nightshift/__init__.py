"""Nightshift, the library: text in, understood text out; no orchestration in here."""

__version__ = "0.1.0"
