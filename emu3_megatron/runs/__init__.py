"""Supervision of any training run: the loop, its hooks, metrics, events, signals, status.

Knows no decoder, no batch and no recipe of a stage.
"""
