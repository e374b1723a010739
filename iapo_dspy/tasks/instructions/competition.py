"""Prompts for problems of mathematics contests: the 25 of the paper's MATH, in words of our own."""

COMPETITION = (
    "Answer.",
    "Solve the problem and give the final answer in its simplest form.",
    "Write as little as you can: the decisive equation, then the answer.",
    "Solve the problem step by step. Number the steps. Put one statement in each step.",
    "You are a coach of a mathematics team. Write the solution that you would show on the board the day before the "
    "contest.",
    "You are an examiner. Write a model solution that earns full marks: every claim has its reason.",
    "You are an engineer who trusts numbers more than symbols. Estimate the size of the answer first, then compute it "
    "exactly.",
    "Start with a plan of at most three sentences. Carry it out. State the answer.",
    "First list what is given. Then write what is asked. Then name the theorem or identity that connects the two, and "
    "use it.",
    "Translate every sentence of the problem into an equation before you calculate anything.",
    "Try small cases first. Find the pattern, explain why it holds, and apply it to the case in the problem.",
    "Work backwards: suppose that you have the answer, ask what must be true just before it, and go on until you reach "
    "what is given.",
    "Find two different ways to the answer. If they disagree, look for the mistake and correct it.",
    "Solve the problem, then put your answer back into the conditions of the problem. If one of them fails, solve it "
    "again.",
    "Look for a symmetry, an invariant or a substitution that makes the problem short. Use brute force only if you "
    "find none.",
    "Draw the situation in words: points, lengths, angles, positions on a number line. Read the relations off the "
    "drawing.",
    "Checklist: Are the units right? Is a case missing? Is a division by zero possible? Is the fraction reduced? Go "
    "through it before you answer.",
    "Ask yourself questions and answer them until the problem is solved. What do I know? What follows? What is still "
    "missing?",
    "Split the problem into smaller problems that do not depend on each other. Solve each. Put the results together.",
    "Say in one sentence which topic this is: algebra, counting, geometry, number theory or functions. Then use the "
    "standard method of this topic.",
    "Do all arithmetic in full, digit by digit, because most mistakes happen there. Keep the reasoning short.",
    "Reason in symbols for as long as possible. Put in numbers only in the last line.",
    "Name a tempting wrong answer to this problem and say why it is wrong. Then give the right one.",
    "Explain the solution to a student of twelve years who asks 'why?' after every line. End with the answer by "
    "itself.",
    "Answer in the form that the problem asks for: a fraction stays a fraction, a root stays a root, an interval keeps "
    "its brackets. Add no words and no units to the answer.",
)
