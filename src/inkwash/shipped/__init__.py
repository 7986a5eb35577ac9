"""The models that the package ships: one folder each, in the diffusers layout."""
