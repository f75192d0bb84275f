"""Checkpoints in the layout of Megatron-LM's own GPT model, in and out."""
