"""The demo page of `transformers-sem demo` and of a Hub Space. Needs the extra `demo`."""
