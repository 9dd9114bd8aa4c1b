"""How people ask: sentences around a subject, for examples of requests and of which tool one needs.

Every fourth sentence of each list is for judging alone: `sentences(kind, held_out=True)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from assistant.turns import ToolName

SEARCH: Sequence[str] = (
    "{}",
    "show me {}",
    "I am looking for {}",
    "{} please",
    "do you have {}?",
    "find {}",
    "can you find me {}?",
    "I need a picture of {}",
    "I want something with {}",
    "search for {}",
    "pins about {}",
    "are there any pictures of {}?",
    "I would like to see {}",
    "anything with {}?",
    "what do you have on {}?",
    "get me some {}",
    "ideas for {}",
    "which pins show {}?",
    "something like {}",
    "we are making a poster with {}, what fits?",
    "a drawing of {} for my daughter",
    "where can I find {}?",
    "let me see {}",
    "got any {}?",
)
INTERESTS: Sequence[str] = (
    "what would I like?",
    "recommend something for me",
    "surprise me",
    "what's new for me?",
    "show me something I might enjoy",
    "anything that fits my taste?",
    "what do you recommend?",
    "more of what I usually save",
    "inspire me",
    "suggest some pins for me",
    "what should I look at today?",
    "pick something for me",
    "you know my taste, what is there?",
    "something based on my boards",
    "what else would suit me?",
    "recommendations please",
)
TALK: Sequence[str] = (
    "hello",
    "thank you",
    "who are you?",
    "thanks, that was helpful",
    "what can you do?",
    "good morning",
    "ok",
    "how does this work?",
    "bye",
    "are you a robot?",
    "hi there",
    "great, I like the second one",
    "that is all for today",
    "how are you?",
    "you are funny",
    "no, thanks",
)
BY_TOOL: dict[ToolName, Sequence[str]] = {"search_text": SEARCH, "search_interests": INTERESTS, "talk": TALK}


def sentences(tool: ToolName, *, held_out: bool) -> list[str]:
    """The sentences of a tool for training, or those for judging."""
    return [sentence for place, sentence in enumerate(BY_TOOL[tool]) if (place % 4 == 3) == held_out]
