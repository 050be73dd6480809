"""Datasets: benchmarks and user folders as rows of images and label maps, their preparation and their transforms."""
