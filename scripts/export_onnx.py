"""The command `transformers-sem export`, for `python scripts/export_onnx.py`."""

from transformers_sem.cli.export import main


if __name__ == "__main__":
    main()
