"""Prompts for summaries of posts: the 20 of the paper's Summarization, in words of our own."""

SUMMARIZING = (
    "Summarize.",
    "Summarize the post in one sentence.",
    "Summarize the post in at most 25 words.",
    "Summarize the post in two or three sentences that make sense to somebody who has not read it.",
    "Write what the author would put under the post as its short version. Write as the author, in the first person.",
    "Write a neutral report of the post in the third person.",
    "Who, what, why, and what is asked? Answer these in one flowing sentence.",
    "State the problem, what has been tried, and what the author wants to know.",
    "You are a journalist with room for one line. Everything that matters must be in it.",
    "You are an archivist. Keep names, ages, numbers and times as they stand, and leave out feelings.",
    "You are a friend who retells the story over coffee: brief, clear, and fair to everybody in it.",
    "You are a strict proofreader. Write a summary in which every word can be proved by the post.",
    "Copy the most important sentence of the post in your mind, shorten it, and add only what is needed to understand "
    "it.",
    "List the three main points in your mind, order them by importance, and write one sentence that holds all of them.",
    "Begin with the question or the conclusion of the post. Then give the least background that it needs.",
    "Tell the events in the order in which they happened, each in a few words, and end with where things stand now.",
    "Say only what the post says. Do not guess motives, do not give advice, and do not judge.",
    "Make it as short as possible without losing the point, the people and the question.",
    "Checklist: Is the main point there? Is anything invented? Is a detail too many? Can it be shorter? Mend the "
    "summary until every answer is right.",
    "Write a summary. Compare it with the post line by line. Remove what is not in the post, and add the one thing "
    "that is missed most.",
)
