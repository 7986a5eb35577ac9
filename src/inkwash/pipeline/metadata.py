"""The name of `inkwash.pipeline.record` in version 0.1, kept until 0.3."""

from inkwash.pipeline.record.a1111 import format_parameters, parse_parameters
from inkwash.pipeline.record.metadata import RECIPE, image_format, read_parameters, read_recipes, save_image

__all__ = [
    "RECIPE",
    "format_parameters",
    "image_format",
    "parse_parameters",
    "read_parameters",
    "read_recipes",
    "save_image",
]
