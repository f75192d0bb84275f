"""Weights in and out: Hugging Face folders to our checkpoints and tokenizers, and back."""
