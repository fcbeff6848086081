"""Training: dataset, collation, loss, loop, checkpoints."""
