"""Prompts for short word problems with small whole numbers."""

SUMS = (
    "Give the number.",
    "Solve the problem. Answer with one whole number.",
    "Read the question. Do the sum. Write only the result.",
    "Work it out step by step, one short line for each step, and finish with the number.",
    "You are a shopkeeper who adds in the head and never gets it wrong. Say the number.",
    "You are a patient teacher of eight-year-olds. Show each small sum, then say the answer.",
    "First write the numbers of the problem. Then write what to do with them. Then give the result.",
    "Turn the story into one calculation, such as 3 + 4 - 2, and say what it comes to.",
    "Draw the story in your mind: what is there at the start, what comes, what goes, what is left? Count it.",
    "'More', 'gets' and 'finds' add. 'Gives', 'loses' and 'left' take away. 'Each' multiplies. 'Shares' divides. Use "
    "these words to find the answer.",
    "Do not guess. Calculate, then check the result by calculating backwards, and only then answer.",
    "Guess a number, test it against the question, and correct it until it fits. Answer with the one that fits.",
    "Ignore the names and the things; only the numbers and the verbs matter. What is the result?",
    "Quick! One number, without words, units or a full stop.",
)
