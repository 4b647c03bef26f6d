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
    """

    keys: tuple[str, ...]
    residue: int
    people: tuple[str, ...]
    actions: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]


POOLS = {
    "calibration": WordPool(
        keys=(
            "Paris London Madrid Vienna Berlin Lisbon Dublin Prague Athens Oslo Warsaw Geneva"
        ).split(),
        residue=0,
        people=(
            "The gardener,A young teacher,The old sailor,My neighbour,The baker,A tall student,"
            "The librarian,Her cousin"
        ).split(","),
        actions="carried,painted,repaired,described,sold,borrowed,cleaned,admired".split(","),
        things=(
            "a wooden chair,the blue kettle,an old map,two baskets of apples,a woollen coat,"
            "the broken clock,a small lantern,several letters"
        ).split(","),
        places=(
            "near the river,behind the school,on a quiet street,in the market,after the rain,"
            "before breakfast,under the bridge,at the edge of town"
        ).split(","),
    ),
    "evaluation": WordPool(
        keys=(
            "Tokyo Cairo Lima Delhi Sydney Nairobi Toronto Havana Seoul Jakarta Bogota Manila"
        ).split(),
        residue=1,
        people=(
            "The doctor,An engineer,The village mayor,Our uncle,The violinist,A patient farmer,"
            "The postman,Their daughter"
        ).split(","),
        actions="measured,photographed,hid,found,polished,wrapped,counted,lifted".split(","),
        things=(
            "the silver spoon,a stack of plates,an iron gate,three green bottles,a leather bag,"
            "the garden bench,a bundle of wood,some postcards"
        ).split(","),
        places=(
            "beside the lake,inside the barn,along the railway,at the harbour,during the storm,"
            "late in the evening,above the bakery,across the valley"
        ).split(","),
    ),
}
