"""What is added to a model that is open, and taken away again: it is attached and detached."""
