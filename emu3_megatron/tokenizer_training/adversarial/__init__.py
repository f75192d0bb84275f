"""Discriminators of frames and clips, what they add to the loss, and when."""
