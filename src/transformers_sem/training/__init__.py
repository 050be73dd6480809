"""Training of a model: settings, data order, optimizer, checkpoints and the training loop."""
