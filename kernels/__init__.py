"""Attention, loss and 8-bit kernels, each with a plain reference; imports torch and triton only."""
