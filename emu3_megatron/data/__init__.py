"""From token shards to batches: store, packing, packs, mixture, batches."""
