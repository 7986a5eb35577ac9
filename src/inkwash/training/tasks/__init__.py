"""Objectives as tasks of the training loop: what each kind of model minimises, whatever of it learns."""
