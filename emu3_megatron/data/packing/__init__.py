"""Packs: which pieces of documents make each training sequence."""
