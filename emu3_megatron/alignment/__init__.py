"""Preferences: samples of a checkpoint, votes on them, and pairs of a better and a worse one."""
