"""Kernels of the two hot paths, each with a plain reference. They know torch and triton only."""
