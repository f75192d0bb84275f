"""What the vision tokenizer keeps of images and clips, in numbers; and what needs no training."""
