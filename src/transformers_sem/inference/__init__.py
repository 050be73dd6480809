"""From a trained model to people: photos, folders and videos of any size in, maps, pictures and facts out."""
