"""`python -m iapo_dspy.simulation` is `iapo simulate`."""

from iapo_dspy.command_line.main import simulate

if __name__ == "__main__":
    simulate()
