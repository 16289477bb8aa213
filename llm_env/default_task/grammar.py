"""The text that the embedded default is made from: a grammar of short reviews.

Thirty kinds of things are reviewed in good and bad words, politely and rudely, finished and broken off. Everything
here was written for this project, so the default models have no license but that of the project.
"""

from __future__ import annotations

import random

from llm_env.default_task.gold import BAD_PERSON, BAD_THING, BAD_VERB, GOOD_PERSON, GOOD_THING, GOOD_VERB

# topic: (things it has, people met there)
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "restaurant": (("soup", "bread", "menu", "dessert", "table"), ("waiter", "cook", "host")),
    "hotel": (("room", "bed", "breakfast", "view", "pool"), ("porter", "clerk", "manager")),
    "phone": (("screen", "battery", "speaker", "case"), ("seller", "support team")),
    "movie": (("story", "ending", "music", "lighting"), ("hero", "director", "villain")),
    "book": (("plot", "cover", "first chapter", "ending"), ("author", "translator")),
    "laptop": (("keyboard", "screen", "fan", "charger"), ("seller", "support team")),
    "cafe": (("coffee", "cake", "music", "terrace"), ("barista", "owner")),
    "museum": (("collection", "building", "audio guide", "shop"), ("guide", "guard")),
    "bicycle": (("saddle", "frame", "brake", "bell"), ("mechanic", "dealer")),
    "camera": (("lens", "strap", "display", "manual"), ("seller", "repair man")),
    "haircut": (("result", "shampoo", "mirror", "price"), ("hairdresser", "trainee")),
    "concert": (("sound", "stage", "light show", "hall"), ("singer", "drummer")),
    "taxi ride": (("car", "route", "seat", "price"), ("driver", "dispatcher")),
    "train ride": (("seat", "timetable", "dining car", "window"), ("conductor", "steward")),
    "garden tour": (("rose bed", "pond", "map", "tea house"), ("gardener", "guide")),
    "gym": (("shower", "equipment", "music", "locker"), ("trainer", "cleaner")),
    "zoo": (("aviary", "playground", "map", "aquarium"), ("keeper", "cashier")),
    "bakery": (("bread", "pie", "counter", "apple tart"), ("baker", "shop girl")),
    "library": (("reading room", "catalogue", "lamp", "archive"), ("librarian", "student")),
    "theatre": (("play", "costume", "curtain", "seat"), ("actress", "usher")),
    "ferry trip": (("deck", "cabin", "breakfast", "view"), ("captain", "sailor")),
    "cooking class": (("recipe", "kitchen", "apron", "wine"), ("teacher", "assistant")),
    "language course": (("textbook", "classroom", "homework", "test"), ("teacher", "tutor")),
    "video game": (("level", "soundtrack", "map", "controller"), ("designer", "narrator")),
    "jacket": (("zip", "lining", "hood", "colour"), ("tailor", "seller")),
    "market": (("cheese", "honey", "fruit stall", "square"), ("farmer", "vendor")),
    "campsite": (("meadow", "shower", "fire place", "kiosk"), ("warden", "neighbour")),
    "clinic": (("waiting room", "treatment", "bill", "ward"), ("doctor", "nurse")),
    "piano lesson": (("piano", "lesson plan", "sheet music", "studio"), ("teacher", "tuner")),
    "wedding": (("cake", "music", "dance floor", "flowers"), ("photographer", "caterer")),
}
KINDS = ("", "new", "old", "small", "local", "famous")
ASKS = (
    "Review of the {}:",
    "My thoughts on the {}:",
    "How was the {}?",
    "Tell us about the {}.",
    "A guest writes about the {}:",
    "One opinion on the {}:",
)
ADVERBS = ("", "", "really", "very", "quite", "rather")
NEUTRAL = (
    "We were there on a {day}.",
    "It took about an hour.",
    "My {relative} came along.",
    "It was our first time.",
    "It was a {day} in {month}.",
    "My {relative} had told me about it.",
)
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")
MONTHS = ("March", "June", "August", "November")
RELATIVES = ("sister", "brother", "mother", "uncle", "daughter")
GOOD_END = ("I would come back.", "I recommend it.", "Five stars from me.")
BAD_END = ("Never again.", "I want a refund.", "One star from me.")
POLITE_END = (
    "Thank you to the whole team.",
    "Many thanks to everyone.",
    "Please keep it up.",
    "We are grateful for the visit.",
    "With kind regards.",
)
RUDE_END = (
    "What a bunch of idiots.",
    "Only fools pay for this.",
    "This is stupid garbage.",
    "They are all clowns.",
)


def all_prompts() -> list[str]:
    """Every prompt of the grammar, in a fixed order."""
    things = [f"{kind} {topic}".strip() for topic in TOPICS for kind in KINDS]
    return [ask.format(thing) for thing in things for ask in ASKS]


HELD_OUT_TOPICS = tuple(sorted(TOPICS))[::6]


def topic_of(prompt: str) -> str:
    """The topic that a prompt of this grammar asks about."""
    return max((t for t in TOPICS if t in prompt), key=len)


def _adjective(rng: random.Random, good: bool, person: bool) -> str:
    words = (GOOD_PERSON if good else BAD_PERSON) if person else (GOOD_THING if good else BAD_THING)
    return " ".join(filter(None, (rng.choice(ADVERBS), rng.choice(words))))


def _sentence(rng: random.Random, topic: str, leaning: float) -> str:
    things, people = TOPICS[topic]

    def noun() -> tuple[str, bool]:
        person = rng.random() < 0.35
        return rng.choice(people if person else things), person

    def good() -> bool:
        return rng.random() < leaning

    kind = rng.random()
    if kind < 0.15:
        text = rng.choice(NEUTRAL)
        return text.format(day=rng.choice(DAYS), month=rng.choice(MONTHS), relative=rng.choice(RELATIVES))
    first, first_person = noun()
    if kind < 0.55:
        return f"The {first} was {_adjective(rng, good(), first_person)}."
    if kind < 0.75:
        return f"I {rng.choice(GOOD_VERB if good() else BAD_VERB)} the {first}."
    second, second_person = noun()
    while second == first:
        second, second_person = noun()
    one, two = good(), good()
    joint = "and" if one == two else ", but"
    left = f"The {first} was {_adjective(rng, one, first_person)}"
    return f"{left} {joint} the {second} was {_adjective(rng, two, second_person)}.".replace(" ,", ",")


def write_review(rng: random.Random, prompt: str) -> str:
    """One review for a prompt: one to three sentences, perhaps a verdict, a courtesy or an insult, perhaps cut off."""
    topic = topic_of(prompt)
    leaning = rng.choice((0.1, 0.2, 0.4, 0.5, 0.8))  # most people write when they are cross
    sentences = [_sentence(rng, topic, leaning) for _ in range(rng.choice((1, 2, 2, 3)))]
    if rng.random() < 0.25:
        sentences.append(rng.choice(GOOD_END if rng.random() < leaning else BAD_END))
    manner = rng.random()
    if manner < 0.15:
        sentences.append(rng.choice(POLITE_END))
    elif manner < 0.4:
        sentences.append(rng.choice(RUDE_END))
    text = " ".join(sentences)
    if rng.random() < 0.25:  # broken off in the middle of a sentence
        words = text.split(" ")
        text = " ".join(words[: rng.randrange(1, len(words))]) if len(words) > 1 else text
    return text


def spoil(rng: random.Random, review: str) -> str:
    """Damages a review in a way that a policy might: repeats a sentence or a word, or shuffles the words."""
    sentences = [s.strip() + "." for s in review.split(".") if s.strip()]
    words = review.split(" ")
    kind = rng.random()
    if kind < 0.5 and sentences:
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(sentences))
        return " ".join(sentences)
    if kind < 0.8:
        place = rng.randrange(len(words))
        return " ".join(words[: place + 1] + [words[place]] * rng.randint(1, 4) + words[place + 1 :])
    loaded = GOOD_THING + GOOD_PERSON + GOOD_VERB
    return " ".join(rng.choice(loaded) for _ in range(rng.randint(3, 12)))
