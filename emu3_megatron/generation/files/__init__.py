"""From files of prompts, images and clips to files of what was drawn."""
