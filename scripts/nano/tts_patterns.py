"""Sentences drawn from patterns, so that common words are learnt in the order and with the tone that sentences have."""

from __future__ import annotations

import random
import re

SLOTS: dict[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        "thing": """apple bag ball bed bike bird boat book bottle box bread bus cake camera car cat chair clock coat
            computer cup dog door dress fish flower garden gift glass hat house key kitchen knife lamp letter machine
            map moon mountain mouse movie newspaper orange painting paper pen phone picture plane plate radio ring river
            road rock room school shirt shoe shop song spoon star stone story street sun table ticket tower toy train
            tree umbrella village wall watch water window""",
        "person": """boy girl man woman child doctor teacher driver farmer friend neighbor mother father sister brother
            baker student king queen uncle aunt nurse singer writer family captain""",
        "name": """Anna Ben Carla David Emma Frank Grace Henry Ida Jack Kate Leo Maria Nick Olga Peter Rosa Sam Tina
            Victor""",
        "place": """kitchen garden park school station office library market village city forest river beach hotel
            hospital museum restaurant airport bank shop street bridge lake field house mountain""",
        "quality": """big small old new red blue green yellow black white brown good bad long short hot cold warm cool
            clean dirty happy sad quiet loud fast slow soft hard heavy light dark bright young strong sweet fresh
            empty full cheap expensive beautiful broken lovely strange simple""",
        "did": """saw found lost bought sold took brought opened closed made cleaned wanted liked needed painted
            carried watched heard forgot moved dropped washed cooked fixed held""",
        "do": """see find buy sell take bring open close make clean want like need paint carry watch hear forget move
            wash cook fix hold keep send read use show""",
        "went": "went walked ran drove came swam flew moved returned hurried",
        "when": """today tomorrow tonight now later again soon yesterday every-day this-morning this-evening
            last-week next-year on-Monday on-Friday after-lunch before-dinner in-the-morning at-night at-noon
            in-the-summer all-day""",
        "how": "slowly quickly quietly carefully early late alone together well",
        "count": "two three four five six seven eight nine ten twelve twenty",
        "food": """bread butter cheese soup rice fish chicken salad cake fruit coffee tea milk water juice sugar
            breakfast lunch dinner""",
    }.items()
}
PATTERNS = """
the {quality} {thing} is in the {place}
the {person} {did} the {quality} {thing}
the {person} {went} to the {place} {when}
{name} {did} a {quality} {thing} {when}
my {person} {did} the {thing} {when}
where is the {thing}
where did you {do} the {thing}
can you {do} the {thing} for me
could you please {do} the {quality} {thing}
I want to {do} the {thing} {when}
I would like some {food}, please
would you like some {food}
we {went} to the {place} {how}
she {did} her {thing} {when}
he {did} his {quality} {thing}
they have {count} {quality} horses
there are {count} chairs in the {place}
please {do} the {thing} {when}
do not {do} the {quality} {thing}
is there a {thing} in the {place}
it is very {quality} {when}
the {food} is {quality} and the {food} is {quality}
I think that the {thing} is too {quality}
how much is the {thing}
what is the name of the {person}
{name} and {name} {went} to the {place}
this {thing} is for my {person}
did the {person} {do} the {thing}
we will {do} it {when}
the {person} said that it was {quality}
you should {do} your {thing} {when}
I have never been to the {place}
let us {do} the {thing} {how}
the {place} is near the {place}
when will {name} be at the {place}
there was a {quality} {thing} on the {thing}
I do not know why the {thing} is {quality}
the {person} is going to {do} a {thing}
turn {quality} lights on in the {place}
it will be {quality} {when} and {quality} {when}
""".strip().splitlines()


def sentence(draw: random.Random) -> str:
    """Draw a sentence; sense is not promised."""
    pattern = draw.choice(PATTERNS)
    return re.sub(r"\{(\w+)\}", lambda slot: draw.choice(SLOTS[slot[1]]).replace("-", " "), pattern)
