"""`python -m onnxslim_opt` is the command `onnxslim`."""

from .cli import main

if __name__ == "__main__":
    main()
