"""Word pools of generated prompts: one set for calibration, one for evaluation, nothing shared.

Keys, fillers and number residues differ between the splits, so no needle, sentence or answer of one
can occur in the other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WordPool:
    """What prompts of a split are made of.

    Attributes:
        keys: things that have a secret number.
        residue: the last bit of every secret number of the split.
        people, actions, things, places: parts of filler sentences.
        nouns: words to count.
        letters: what variable names are made of.
        syllables: what made-up words are made of.
    """

    keys: tuple[str, ...]
    residue: int
    people: tuple[str, ...]
    actions: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]
    nouns: tuple[str, ...]
    letters: str
    syllables: tuple[str, ...]


def _items(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


POOLS = {
    "calibration": WordPool(
        keys=_items(
            "Paris,London,Madrid,Vienna,Berlin,Lisbon,Dublin,Prague,Athens,Oslo,Warsaw,Geneva"
        ),
        residue=0,
        people=_items(
            "The gardener,A young teacher,The old sailor,My neighbour,The baker,A tall student,"
            "The librarian,Her cousin"
        ),
        actions=_items("carried,painted,repaired,described,sold,borrowed,cleaned,admired"),
        things=_items(
            "a wooden chair,the blue kettle,an old map,two baskets of apples,a woollen coat,"
            "the broken clock,a small lantern,several letters"
        ),
        places=_items(
            "near the river,behind the school,on a quiet street,in the market,after the rain,"
            "before breakfast,under the bridge,at the edge of town"
        ),
        nouns=_items(
            "apple,bridge,candle,dragon,engine,feather,garden,hammer,island,jacket,"
            "kitten,ladder,mirror,needle,orange,pencil,rabbit,saddle,tunnel,"
            "umbrella,violin,wagon,anchor,basket,carpet,dinner,forest,guitar,helmet,"
            "insect,jungle,kettle,lemon,magnet,napkin,oven,palace,ribbon,silver,"
            "ticket"
        ),
        letters="ABCDEFGHIJKLM",
        syllables=_items("ba,be,bi,bo,bu,da,de,di,do,du,fa,fe,fi,fo,fu,ga,ge,gi,go,gu"),
    ),
    "evaluation": WordPool(
        keys=_items(
            "Tokyo,Cairo,Lima,Delhi,Sydney,Nairobi,Toronto,Havana,Seoul,Jakarta,Bogota,Manila"
        ),
        residue=1,
        people=_items(
            "The doctor,An engineer,The village mayor,Our uncle,The violinist,A patient farmer,"
            "The postman,Their daughter"
        ),
        actions=_items("measured,photographed,hid,found,polished,wrapped,counted,lifted"),
        things=_items(
            "the silver spoon,a stack of plates,an iron gate,three green bottles,a leather bag,"
            "the garden bench,a bundle of wood,some postcards"
        ),
        places=_items(
            "beside the lake,inside the barn,along the railway,at the harbour,during the storm,"
            "late in the evening,above the bakery,across the valley"
        ),
        nouns=_items(
            "arrow,blanket,camera,desert,eagle,fountain,goblet,harbor,iceberg,jewel,"
            "kingdom,lantern,monkey,notebook,ocean,pepper,quarry,rocket,summer,"
            "temple,uncle,valley,window,yogurt,zebra,acorn,button,cabin,donkey,"
            "elbow,finger,ginger,hotel,infant,jelly,koala,lizard,market,nephew,"
            "orchid"
        ),
        letters="NOPQRSTUVWXYZ",
        syllables=_items("la,le,li,lo,lu,ma,me,mi,mo,mu,na,ne,ni,no,nu,ra,re,ri,ro,ru"),
    ),
}
