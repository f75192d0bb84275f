"""Captions of images and clips: from files, or from a server."""
