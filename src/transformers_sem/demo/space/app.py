"""A Hub Space: the demo page of the model in `models/`."""

from pathlib import Path

from transformers_sem.demo.page import launch


if __name__ == "__main__":
    (model,) = (Path(__file__).parent / "models").iterdir()
    # a Space is public under whatever name the Hub gives it
    launch(model, host="0.0.0.0", allow_hosts=["*"])
