"""English for captions: articles, and which names say a colour."""

import re

from recipes.mini.colours import COLOUR_WORDS

SPELLED = frozenset("SOS ATM NG VS UFO MRI ID AB CL".split())
BARE = re.compile(  # names that take no article: proper ones, times of the clock
    r"^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus|om"
    r"|mount fuji|santa claus|mrs\.? claus|mx claus|map of japan|(keycap|letter|digit) .*"
    r"|.* o'clock|.*[- ]thirty)$",
    re.I,
)
DEFINITE = re.compile(r"^(flag of|milky way|statue of liberty|globe showing)\b", re.I)
MASS = frozenset(
    "rice bread money water fire snow fog foggy jogging bowling golfing sushi sake bacon cheese honey butter"
    " garlic ginger broccoli corn spaghetti pizza oden dango tea coffee milk salt ice luggage hair soap"
    " tennis badminton lacrosse billiards yarn cooking lightning underage prohibited infinity recycling"
    " radioactive biohazard poo tofu evidence meat peace multiply plus minus divide information"
    " wood thread clothing unlocked locked hockey racing voltage".split()
)
SINGULAR = re.compile(r"(ss|us|is|gas|lens|canvas|christmas|atlas|news|ceros)$")
PLURAL = frozenset("people men women children feet teeth mice geese dice lungs".split())
HEAD_ENDS = re.compile(r" (with|of|on|in|behind|at|over|for|without|holding|and|from|facing|above|off|to)\b")


def article(name: str) -> str:
    """The article before a name: "an " apple, "a " unicorn, "an " SOS button, "the " flag of Peru, "" jeans."""
    if DEFINITE.search(name):
        return "the "
    if re.match(r"(person|man|woman|boy|girl)\b(?!')", name):  # "a man lifting weights"
        return "a "
    head = HEAD_ENDS.split(name, maxsplit=1)[0]
    last = head.split()[-1].lower() if head.split() else ""
    plural = last in PLURAL or (last.endswith("s") and not SINGULAR.search(last) and len(last) > 3)
    if BARE.match(name) or plural or last in MASS:
        return ""
    first = re.split(r"[\s-]", name)[0]
    if first in SPELLED or re.fullmatch(r"[A-Z]\W?", first):
        vowel = first[0] in "AEFHILMNORSX"
    elif first[0].isdigit():
        vowel = first.startswith(("8", "11", "18"))
    else:
        sound = first.lower()
        vowel = sound == "x" or (sound[0] in "aeiou" or sound.startswith(("hour", "honest", "heir", "herb")))
        vowel = vowel and not re.match(r"(uni(?!m|n)|u[stk][aeio](?!n)|euro?|one\b|once|ewe|ufo|u$)", sound)
    return "an " if vowel else "a "


def noun(name: str, colour: str | None = None) -> str:
    """The name with its article and colour: "a red apple", "an orange book", "red jeans"."""
    if re.match(r"no [a-z]", name):  # "no smoking" would show nothing
        name = f"{name} sign"
    own = article(name)
    if colour is None:
        return own + name
    if own == "the ":
        return f"the {colour} {name}"
    return f"{article(colour)}{colour} {name}" if own else f"{colour} {name}"


PEOPLE = re.compile(  # never described by a colour, nor painted in another one
    r"\b(person|people|(wo)?m[ae]n|child(ren)?|bab(y|ies)|adult|boys?|girls?|famil(y|ies)|couple|kiss|faces?|hands?"
    r"|fingers?|thumbs?|fist|palms?|arm|legs?|foot|ears?|nose|biceps|selfie|massage|hair(cut)?|beard|bald|headscarf"
    r"|prince(ss)?|santa|claus|mages?|fair(y|ies)|elf|elves|genies?|vampires?|zombies?|mer(maid|man|person)"
    r"|super\w+|detectives?|guards?|workers?|cook|judges?|pilots?|artists?|singers?|scientists?|teachers?|students?"
    r"|farmers?|mechanics?|technologists?|astronauts?|firefighters?|police|officers?|ninja|dancers?|wrestl\w+|twins"
    r"|bride|angel|deaf|dolls|skullcap|turban|veil|tuxedo|feeding|clapping|handshake)\b",
    re.I,
)


def says_colour(name: str) -> bool:
    """Return True if a name has a colour word, as "red heart" has, or fixed colours, as a flag or a person has."""
    if PEOPLE.search(name):
        return True
    words = set(re.split(r"[\s-]", name.lower()))
    return bool(words & COLOUR_WORDS) or bool(words & {"flag", "rainbow", "traffic"})
