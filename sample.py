"""Write text with a trained model: python sample.py runs/NAME prompt="Once upon a time" (sampling/cli.py)."""

from sampling.cli import PROGRAM

if __name__ == "__main__":
    PROGRAM.run()
