"""The parts of a training run, which `scripts/train.py` assembles."""
