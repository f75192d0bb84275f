"""Attention and loss kernels, each with a plain reference; imports torch and triton only."""
