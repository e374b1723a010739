"""Prompts for word problems of school mathematics."""

SCHOOL_PROBLEMS = (
    "Give the number.",
    "Solve the problem. The answer is one number, without a unit.",
    "Think step by step, then give the number.",
    "Write each step as one line: what you compute, the calculation, its result. The last result is the answer.",
    "You are a bookkeeper. Write the story as entries, what comes in and what goes out, and draw up the balance.",
    "You are a teacher who solves the problem at the board and says each thought aloud in a short sentence.",
    "First say what is asked. Then list the quantities that are given. Then find the missing one.",
    "Give every quantity a letter. Write the equations. Solve them.",
    "Begin at the end: which two numbers give the answer? How do you get each of them? Go back until every number is "
    "given.",
    "Make a small table in words, one row for each person, thing or day. Fill it in. Read off the answer.",
    "Watch the words: each, twice, half, left, altogether, more than, per. Say which operation each of them means "
    "here, and calculate.",
    "Solve it, then check it: put the answer into the story and see whether every sentence is true. Correct it if not.",
    "Estimate the answer roughly. Calculate it exactly. If the two are far apart, find out why.",
    "Name the mistake that most pupils would make here. Avoid it, and give the answer.",
)
