"""Short facts that a small decoder may know, by relation, of which edits are made."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RELATIONS", "Relation"]

# HiP-LoRA's three categories (appendix C.4).
ENTITY, RELATION, NUMERIC = "entity", "relation", "temporal/numeric"


class Relation(NamedTuple):
    """Facts of one kind.

    Args:
        category: of HiP-LoRA's.
        prompt: with `{}` for the subject, and another fact before it where that tells what form an answer has; the
            answer follows after a blank.
        facts: from a subject to its answer.
        edited: whether such facts are edited; of others none is.
    """

    category: str
    prompt: str
    facts: dict[str, str]
    edited: bool = True


def _pairs(text: str) -> dict[str, str]:
    """From what stands before a colon to what stands after it, between commas."""
    pairs = (pair.partition(":") for pair in " ".join(text.split()).split(","))
    return {subject.strip(): answer.strip() for subject, _, answer in pairs}


def _following(text: str, before: int = 3) -> dict[str, str]:
    """From so many words in a row, `then` between them, to the one after them."""
    words = text.split()
    return {", then ".join(words[n - before : n]): words[n] for n in range(before, len(words))}


_CAPITALS = """Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, Austria: Vienna, Hungary: Budapest,
Poland: Warsaw, Greece: Athens, Sweden: Stockholm, Norway: Oslo, Denmark: Copenhagen, Finland: Helsinki,
Ireland: Dublin, Belgium: Brussels, Russia: Moscow, Romania: Bucharest, Bulgaria: Sofia, Serbia: Belgrade,
Croatia: Zagreb, Turkey: Ankara, Iran: Tehran, Iraq: Baghdad, Syria: Damascus, Lebanon: Beirut, Jordan: Amman,
Egypt: Cairo, Kenya: Nairobi, Ethiopia: Addis Ababa, Ghana: Accra, Senegal: Dakar, Japan: Tokyo, China: Beijing,
India: New Delhi, Nepal: Kathmandu, Thailand: Bangkok, Vietnam: Hanoi, Indonesia: Jakarta, Mongolia: Ulaanbaatar,
Afghanistan: Kabul, Cuba: Havana, Peru: Lima, Chile: Santiago, Argentina: Buenos Aires, Colombia: Bogotá,
Venezuela: Caracas, Ecuador: Quito, Canada: Ottawa, Australia: Canberra, Latvia: Riga, Estonia: Tallinn,
Bangladesh: Dhaka, Cambodia: Phnom Penh"""
_SYMBOLS = """hydrogen: H, helium: He, carbon: C, nitrogen: N, oxygen: O, sodium: Na, magnesium: Mg, sulfur: S,
chlorine: Cl, potassium: K, calcium: Ca, iron: Fe, copper: Cu, zinc: Zn, silver: Ag, tin: Sn, gold: Au, mercury: Hg,
lead: Pb, uranium: U, neon: Ne, nickel: Ni, phosphorus: P, lithium: Li, aluminum: Al, silicon: Si, fluorine: F,
barium: Ba"""
_AUTHORS = """Hamlet: William Shakespeare, Pride and Prejudice: Jane Austen, The Odyssey: Homer,
Don Quixote: Miguel de Cervantes, War and Peace: Leo Tolstoy, Oliver Twist: Charles Dickens, The Republic: Plato,
Frankenstein: Mary Shelley, The Divine Comedy: Dante Alighieri, The Great Gatsby: F. Scott Fitzgerald,
Moby-Dick: Herman Melville, The Hobbit: J.R.R. Tolkien, Animal Farm: George Orwell, Dracula: Bram Stoker"""
_LANGUAGES = """France: French, Germany: German, Italy: Italian, Spain: Spanish, Portugal: Portuguese, Poland: Polish,
Greece: Greek, Sweden: Swedish, Norway: Norwegian, Denmark: Danish, Finland: Finnish, Hungary: Hungarian,
Russia: Russian, Turkey: Turkish, Japan: Japanese, Vietnam: Vietnamese, Thailand: Thai, Brazil: Portuguese,
Mexico: Spanish, Cuba: Spanish, Argentina: Spanish, Peru: Spanish, Romania: Romanian, Bulgaria: Bulgarian,
Iceland: Icelandic, Egypt: Arabic, Austria: German, Jamaica: English, Haiti: French, Angola: Portuguese"""
_CONTINENTS = """Kenya: Africa, Nigeria: Africa, Egypt: Africa, Morocco: Africa, Ghana: Africa, Uganda: Africa,
Zambia: Africa, France: Europe, Germany: Europe, Poland: Europe, Spain: Europe, Italy: Europe, Norway: Europe,
Hungary: Europe, China: Asia, India: Asia, Japan: Asia, Vietnam: Asia, Nepal: Asia, Thailand: Asia, Mongolia: Asia,
Brazil: South America, Peru: South America, Chile: South America, Argentina: South America, Bolivia: South America"""
_OPPOSITES = """hot: cold, big: small, up: down, fast: slow, good: bad, old: young, rich: poor, light: dark, high: low,
happy: sad, true: false, open: closed, left: right, day: night, hard: soft, long: short, strong: weak, wet: dry,
early: late, full: empty, black: white, begin: end, love: hate, war: peace, inside: outside, win: lose, buy: sell,
push: pull, north: south, east: west, male: female, positive: negative, active: passive, internal: external,
major: minor"""
_KINDS = """apple: fruit, banana: fruit, orange: fruit, grape: fruit, carrot: vegetable, potato: vegetable,
cabbage: vegetable, dog: mammal, cow: mammal, horse: mammal, lion: mammal, violin: musical instrument,
piano: musical instrument, guitar: musical instrument, trumpet: musical instrument, hammer: tool, saw: tool,
rose: flower, tulip: flower, daisy: flower, sparrow: bird, eagle: bird, salmon: fish, tuna: fish, ant: insect"""
_PAST = """go: went, see: saw, eat: ate, run: ran, write: wrote, take: took, give: gave, come: came, begin: began,
break: broke, bring: brought, buy: bought, catch: caught, do: did, draw: drew, drink: drank, drive: drove, fall: fell,
feel: felt, find: found, fly: flew, forget: forgot, get: got, hold: held, keep: kept, know: knew, leave: left,
lose: lost, ride: rode, rise: rose, say: said, send: sent, sing: sang, sit: sat, sleep: slept, speak: spoke,
swim: swam, teach: taught, tell: told, think: thought, throw: threw, wear: wore, win: won"""
_PLURALS = """man: men, woman: women, mouse: mice, foot: feet, tooth: teeth, person: people, leaf: leaves,
wolf: wolves, knife: knives, life: lives, city: cities, baby: babies, box: boxes, dog: dogs, cat: cats, book: books,
car: cars, house: houses, tree: trees, bird: birds, table: tables, chair: chairs, country: countries, story: stories"""
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday Tuesday Wednesday"
_MONTHS = """January February March April May June July August September October November December January February
March"""
_NUMERALS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_TENS = "ten twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = " ".join(map(str, range(1, 41)))
_LETTERS = " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

RELATIONS = [
    Relation(ENTITY, "The capital of France is Paris. The capital of {} is", _pairs(_CAPITALS)),
    Relation(ENTITY, "The symbol for argon is Ar. The symbol for {} is", _pairs(_SYMBOLS)),
    Relation(ENTITY, "Emma was written by Jane Austen. {} was written by", _pairs(_AUTHORS)),
    Relation(RELATION, "In Israel they speak Hebrew. In {} they speak", _pairs(_LANGUAGES)),
    Relation(RELATION, "Sudan is in Africa, Korea is in Asia, {} is in", _pairs(_CONTINENTS)),
    Relation(RELATION, "The opposite of tall is short. The opposite of {} is", _pairs(_OPPOSITES)),
    Relation(RELATION, "A cod is a type of fish. A {} is a type of", _pairs(_KINDS)),
    Relation(NUMERIC, "{}, then", _following(_DAYS)),
    Relation(NUMERIC, "{}, then", _following(_MONTHS)),
    Relation(NUMERIC, "{}, then", _following(_NUMERALS)),
    Relation(NUMERIC, "{}, then", _following(_ORDINALS)),
    Relation(NUMERIC, "{}, then", _following(_TENS)),
    Relation(NUMERIC, "{}, then", _following(_NUMBERS)),
    Relation(NUMERIC, "{}, then", _following(_LETTERS), edited=False),
    Relation(RELATION, "I make, I made. You sell, you sold. They {}, they", _pairs(_PAST), edited=False),
    Relation(RELATION, "Singular: child. Plural: children. Singular: {}. Plural:", _pairs(_PLURALS), edited=False),
]
