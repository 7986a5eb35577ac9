"""The place where version 0.1 had the names of U-Net modules, kept until 0.3; see `inkwash.weights.names.tables`."""

from inkwash.weights.names.tables import unet_paths

__all__ = ["unet_paths"]
