"""The server: HTTP endpoints that OpenAI's clients know, over one generator."""
