"""The demo page: what `scripts/demo.py` and a Hub Space show. Needs the extra `demo`."""
