"""Which model, with which weights: loading, checkpoints, users' factories."""
