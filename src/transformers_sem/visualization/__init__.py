"""Color images of maps, of predictions and of the model's internal states."""
