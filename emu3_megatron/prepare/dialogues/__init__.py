"""Dialogues about images and clips: rows as LLaVA and ShareGPT write them, to shards."""
