"""Token shards: reading, writing, index and sidecar."""
