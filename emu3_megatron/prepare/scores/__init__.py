"""Scores of images and clips, by which they are selected."""
