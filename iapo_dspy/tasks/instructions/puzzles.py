"""Prompts for the questions of BIG-Bench-Hard, which are of many kinds; they fit all of them."""

PUZZLES = (
    "Answer.",
    "Answer the question in the form that it asks for, without any other words.",
    "Think step by step, then answer.",
    "Say what the rules of this question are. Apply them one at a time. Answer.",
    "You are a logician. Accept nothing that the question does not say, and draw every conclusion that it allows.",
    "You are a proofreader with endless patience. Read word by word, because one small word decides.",
    "Keep a record: write the state at the start, and the new state after each sentence of the question. The last "
    "state gives the answer.",
    "Rewrite the question as a list of short facts. Number them. Say which numbers lead to the answer.",
    "If there are options, test each of them against every condition and drop the ones that fail. If there are none, "
    "work the answer out.",
    "Try to show that the first answer that comes to mind is wrong. If you cannot, it is the answer.",
    "Use symbols for the names and signs for the relations. Solve it on paper, then translate the result back.",
    "Work it out twice, once forwards and once backwards. Answer when both agree.",
    "Name the trap in this question. Step around it. Answer.",
    "Be brief: at most three lines of reasoning, each shorter than ten words, then the answer.",
)
