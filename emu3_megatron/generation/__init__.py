"""The generator: images, clips and captions from a decoder."""
