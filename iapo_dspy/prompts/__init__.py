"""The prompt set: candidate programs, combinations of instructions, decodings and LMs."""
