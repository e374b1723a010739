"""`python -m iapo_dspy.demo` is `iapo demo`."""

from iapo_dspy.command_line.main import demo

if __name__ == "__main__":
    demo()
