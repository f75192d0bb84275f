"""Attention and loss, each with a plain reference. This package imports torch and triton only."""
