"""From token shards to batches: shards, packs, sources, mixture, batches."""
