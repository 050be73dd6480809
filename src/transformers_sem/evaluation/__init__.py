"""Metrics, sums over images, the boundary measure, and the evaluation of a model on labeled rows."""
