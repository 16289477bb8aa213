"""Users who say what they think of the embedded actor's answers, in the words of people: a chat log with known truth.

A user's opinion of an answer follows the gold rule, with noise; some say nothing of it and go on to something else. The
phrases were written without looking at the rules that are to find them, and have what people's have: thanks around a
refusal, praise in the words of blame, questions with a word of praise in them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from agents.conversations.log import NEGATIVE, NONE, POSITIVE
from llm_env.default_task.gold import gold_score
from llm_env.default_task.grammar import TOPICS

SAYS_SOMETHING = 0.75
"""Share of the users who say what they think."""
LEAST_GOLD = -0.5
"""Gold score from which a user is content, before noise."""
NOISE = 0.5
"""Scale of the logistic noise of an opinion, in units of the gold score."""
PHRASES: dict[str, tuple[str, ...]] = {
    POSITIVE: (
        "Thanks!",
        "Thank you, that helps a lot.",
        "Great, exactly what I was looking for.",
        "Perfect. I'll take it.",
        "That's a lovely way to put it.",
        "Nice one.",
        "Good, I can use that.",
        "Oh, I like this.",
        "That reads well.",
        "Not bad at all!",
        "Wow, I couldn't have said it better.",
        "Yes, just so.",
        "Much better than I expected.",
        "You made my day 🙂",
        "👍",
        "Brilliant, thanks a million.",
        "ok that works for me, cheers",
        "This is really kind. We will print it.",
        "Super!",
        "Fine by me. Next: the {topic}.",
        "Thanks, and now the same for the {topic} please.",
        "I agree with every word.",
        "No complaints here.",
        "That was fast, and right too.",
    ),
    NEGATIVE: (
        "No, that's wrong.",
        "That's not what I asked for.",
        "This is useless.",
        "Too short, tell me more.",
        "Thanks, but that doesn't help me.",
        "Hm, I don't like the tone.",
        "You stopped in the middle of a sentence.",
        "Why so rude?",
        "Can you try again?",
        "That makes no sense.",
        "I expected something nicer.",
        "Please write it again, friendlier this time.",
        "Terrible.",
        "I can't publish that.",
        "👎",
        "This is way too negative, we have guests reading it.",
        "Nobody talks like that.",
        "Is that all?",
        "Boring.",
        "You said the same thing twice.",
        "Not a good answer, sorry.",
        "My grandmother would write this better.",
        "Sorry, but I will not use that.",
        "Great, another useless answer.",
    ),
    NONE: (
        "And the {topic}?",
        "How was the {topic}?",
        "Tell me about the {topic}.",
        "What did it cost?",
        "Where is that?",
        "Was the staff helpful?",
        "Is the {topic} a good place for children?",
        "I am going there on Friday.",
        "My brother was there last year.",
        "ok",
        "One moment, the phone is ringing.",
        "Which day was that?",
        "Can you write one about the {topic}?",
        "Do they take cards?",
        "Let us talk about the {topic} now.",
        "Who was with you?",
        "I see.",
        "We have a {topic} too.",
        "How do I get to the {topic} from here?",
        "Is it true that the {topic} was closed in June?",
    ),
}


def write_conversations(
    prompts: Sequence[str], answers: Sequence[str], finished: Sequence[bool], seed: int = 0
) -> list[dict[str, Any]]:
    """Makes a conversation of each prompt and answer, with what the user says next.

    Args:
        prompts: The first messages.
        answers: The answers to them.
        finished: Whether each answer ended by itself.
        seed: Seed of opinions and words.

    Returns:
        Records of a chat log; the last message has the truth as ``feedback``.
    """
    rng, records = random.Random(seed), []
    for number, (prompt, answer, ended) in enumerate(zip(prompts, answers, finished, strict=True)):
        (gold,) = gold_score([prompt], [answer])
        share = rng.uniform(1e-9, 1 - 1e-9)
        content = gold + NOISE * math.log(share / (1 - share)) > LEAST_GOLD
        truth = NONE if rng.random() > SAYS_SOMETHING else POSITIVE if content else NEGATIVE
        reply = rng.choice(PHRASES[truth]).format(topic=rng.choice(sorted(TOPICS)))
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer, **({} if ended else {"finished": False})},
            {"role": "user", "content": reply, "feedback": truth},
        ]
        records.append({"id": f"c{number}", "messages": messages})
    return records
