"""What several parts of the package share: atomic files, plain errors, settings, process pools, environment reports."""
