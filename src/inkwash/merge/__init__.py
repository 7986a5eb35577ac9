"""Models made of models: merged by weights, block by block, one tensor at a time."""
