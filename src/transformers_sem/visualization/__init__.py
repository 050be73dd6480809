"""Colors, panels and figures of predictions and of the inside of a model."""
