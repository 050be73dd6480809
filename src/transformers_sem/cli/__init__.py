"""The commands of the console entry point `transformers-sem`, one module each."""
