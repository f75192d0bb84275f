"""Training the vision tokenizer."""
