"""Prediction for images, folders and videos of any size, written as maps, images and JSON."""
