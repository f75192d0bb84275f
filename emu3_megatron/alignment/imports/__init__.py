"""Votes and scores that other tools collected."""
