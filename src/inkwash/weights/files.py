"""The name of `inkwash.files` in version 0.1, kept until 0.3."""

from inkwash.files import ModelFileError, atomic, write_text

__all__ = ["ModelFileError", "atomic", "write_text"]
