"""Measuring a decoder, and drawing with it while it trains."""
