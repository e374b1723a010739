"""Prompts for the sentiment of sentences from film reviews."""

SENTIMENT = (
    "positive or negative?",
    "Label the sentence with one word: positive or negative.",
    "Does the writer like the film? positive means yes, negative means no.",
    "You are a film critic's assistant who sorts cuttings into two trays, positive and negative. Name the tray.",
    "You run a cinema and ask yourself of each sentence: would I print it on the poster? If so it is positive, "
    "otherwise it is negative.",
    "positive: the sentence praises, enjoys, recommends or is moved. negative: it blames, is bored, warns or is let "
    "down. Choose one.",
    "Name the strongest word of the sentence, say whether it is praise or blame, and then give the label.",
    "Weigh the praise against the blame. The heavier side is the label.",
    "Step 1: find what is judged. Step 2: find how it is judged. Step 3: answer positive or negative.",
    "Checklist. Is there praise? Is it meant? Does a 'but' turn it around? What comes after the 'but' decides. Answer "
    "positive or negative.",
    "Imagine the opposite opinion in the same style. If your opposite is praise, the sentence is negative; if it is "
    "blame, the sentence is positive.",
    "Beware of irony: faint or exaggerated praise is often negative. Read twice, then answer with the label.",
    "Answer with the first label that comes to mind. Then read the sentence once more, and change the label only if "
    "you find a clear reason.",
    "How many stars does the writer give, one to five? Four and five are positive; one, two and three are negative. "
    "Answer with the label only.",
)
