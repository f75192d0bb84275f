"""Prepares photos, clips and text: from raw files to token shards and packs."""
