"""The name of `inkwash.pipeline.images` in version 0.1, kept until 0.3."""

from inkwash.pipeline.images import open_picture, to_images, to_mask, to_pixels

__all__ = ["open_picture", "to_images", "to_mask", "to_pixels"]
