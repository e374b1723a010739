"""Prompts for objective and subjective sentences: those of a film's story, and those of a review."""

SUBJECTIVITY = (
    "story or review?",
    "Is the sentence from a review of a film or from its story? Answer with one word: story or review.",
    "Fact of a plot or opinion of a critic? A fact is story, an opinion is review.",
    "You are the editor of an encyclopedia of films. A sentence that may stay in the plot is story; one that you "
    "strike as somebody's view is review.",
    "You are a judge who admits events only. Admitted: story. Refused: review.",
    "story: it says what happens, who somebody is, or where a plot goes. review: it says what somebody thinks or feels "
    "of a film. Choose one.",
    "Does the sentence tell the story of a film, or does it judge the film? Telling is story, judging is review.",
    "Look for words of praise, blame or taste. If you find one, the label is review; if not, it is story.",
    "Step 1: ask what the sentence is about. Step 2: ask whether two honest people could disagree with it. If they "
    "could, it is a review, otherwise a story.",
    "Checklist: an adjective of value, an 'I' or 'you', a comparison with other films, a joke at its cost. One tick or "
    "more: review. Not a tick: story.",
    "Say who speaks, a narrator or a critic. A narrator tells a story, a critic writes a review.",
    "Rewrite the sentence in your mind as a bare report. If nothing is lost it was story; if its point is lost it was "
    "review.",
    "Names, places and plots are story, however dramatic they are. Verdicts are review, however sober they sound.",
    "Decide, then argue the other label to yourself in one sentence. Keep your label, story or review, unless that "
    "argument is better.",
)
