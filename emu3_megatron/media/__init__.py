"""The one reader of images and the one reader of videos; writers of PNG, MP4 and GIF."""
