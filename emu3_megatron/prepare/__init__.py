"""From photos, clips and text to token shards."""
