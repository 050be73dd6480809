"""Export of a trained model to ONNX."""
