"""Training system for Emu3-like models: text, images and video as one stream of discrete tokens."""

__version__ = "0.1.0"
