"""Additions to an open model, which are attached to it and detached again."""
