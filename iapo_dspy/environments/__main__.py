"""`python -m iapo_dspy.environments` has the commands of `iapo`, such as `export` and `record`."""

from iapo_dspy.command_line.main import iapo

if __name__ == "__main__":
    iapo()
