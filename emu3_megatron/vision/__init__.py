"""The vision tokenizer: its network, encoding and decoding."""
