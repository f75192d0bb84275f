"""Durable folders of named state, saved in the background and loaded into any layout."""
