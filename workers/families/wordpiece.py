"""WordPiece as BERT has it, made of ONNX Runtime's own operators, so that a fine-tuned model reads raw text.

The tables come from the tokenizer itself, asked character by character: how each is normalised, and whether it stands
alone. The longest known piece at each character is found by walking a tree of pieces from all characters at once; which
of these pieces a word is made of follows from jumping on from its first character, in jumps that double.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, TensorProto, helper
from tokenizers import Tokenizer

from app.core.errors import InvalidSpec
from workers.export.graph import ML, Graph
from workers.families.tokens import cut_nodes, token_nodes
from workers.families.vocabulary import TokenReader, packed_nodes
from workers.learning import Array

_NOTHING, _BLANK, _INNER, _ALONE, _END = range(5)  # numbers of characters; inner and alone: ones that no piece holds
_DEAD, _FIRST, _LATER = range(3)  # states of the tree: none, before a word's first character, before a later one
_DOUBLINGS = 7  # 2 ** 7 pieces are more than the longest word has
_ASSIGNED = (*range(0xD800), *range(0xE000, 0x323B0), *range(0xE0000, 0xE01F0))  # code points that may be characters


@dataclass(frozen=True, slots=True)
class WordPiece(TokenReader):
    """The pieces of a tokenizer; token 0 is padding, and others are the tokenizer's numbers plus one.

    `spelled` has the numbers of the characters that a character is normalised to (others: INNER), `alone` [numbers]
    whether each is a word of its own, `edges` the tree (state, character and whether a word begins there, to the next
    state), and `pieces` [states] the token that ends in a state, or 0.
    """

    spelled: Mapping[str, tuple[int, ...]]
    alone: npt.NDArray[np.int64]
    edges: Mapping[int, int]
    pieces: npt.NDArray[np.int64]
    longest: int  # characters of a piece
    most_characters: int  # of a word; longer ones are unknown
    unknown: int
    fixed: tuple[int, ...]  # padding, what a row begins with, and what a text ends with
    size: int
    max_tokens: int
    max_characters: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, max_tokens: int, max_characters: int) -> "WordPiece":
        """The tables of a tokenizer.

        Raises:
            InvalidSpec: it is not WordPiece with BERT's normaliser and words.
        """
        told = json.loads(tokenizer.to_str())
        model, normalizer, words = (told[part] or {} for part in ("model", "normalizer", "pre_tokenizer"))
        kinds = model.get("type"), normalizer.get("type"), words.get("type")
        if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
            msg = (
                f"its tokenizer is of {', '.join(map(str, kinds))}; only BERT's WordPiece can be made part of the model"
            )
            raise InvalidSpec.at("params", "weights", msg=msg)
        vocabulary: dict[str, int] = model["vocab"]
        missing = [name for name in ("[CLS]", "[SEP]", model["unk_token"]) if name not in vocabulary]
        if missing:
            raise InvalidSpec.at("params", "weights", msg=f"its vocabulary has no {', '.join(missing)}")
        tree = _Tree(vocabulary, model["continuing_subword_prefix"])
        spelled, alone = _spellings(tokenizer, tree.characters)
        fixed = 0, vocabulary["[CLS]"] + 1, vocabulary["[SEP]"] + 1
        return cls(
            spelled, alone, tree.edges, np.asarray(tree.pieces, np.int64), tree.longest,
            model["max_input_chars_per_word"], vocabulary[model["unk_token"]] + 1, fixed,
            max(vocabulary.values()) + 2, max_tokens, max_characters,
        )  # fmt: skip

    def to_nodes(self, graph: Graph) -> str:
        """From the input `text` [N, t] to `tokens`, INT64 [N, L]: `[CLS]`, then the texts, a `[SEP]` after each."""
        characters = self._character_nodes(graph)
        one, none = graph.constant(1, np.int64), graph.constant(0, np.int64)
        inside = graph.add("Greater", characters, graph.constant(_BLANK, np.int64))
        alone = graph.add("Gather", graph.constant(self.alone, np.int64), characters, axis=0)
        whole = graph.add("Where", inside, alone, one)  # neither blanks nor those alone are followed by their own word
        before = _moved(graph, whole, -1, 1)
        starts = graph.add("And", inside, _true(graph, graph.add("Max", alone, before)))
        start = graph.add("Cast", starts, to=TensorProto.INT64)
        length, piece = self._longest_nodes(graph, characters, start)
        visited = graph.add("And", _visited(graph, start, length), inside)
        lost = graph.add("And", visited, graph.add("Equal", length, none))
        failed = self._failed_nodes(graph, start, inside, lost)
        unknown = graph.add("Mul", start, graph.constant(self.unknown, np.int64))
        known = graph.add("Where", visited, piece, none)
        tokens = packed_nodes(graph, graph.add("Where", failed, unknown, known))
        return self._ended_nodes(graph, _moved(graph, tokens, -1, self.fixed[1], keep=True))

    def _character_nodes(self, graph: Graph) -> str:
        """Numbers of normalised characters [N, L], an END after each text, and nothing in the last column."""
        written = token_nodes(graph, "characters", cut_nodes(graph, self.max_characters))
        places, axis = [], graph.constant([-1], np.int64)
        for place in range(max(map(len, self.spelled.values()))):
            numbers = {"": _NOTHING} | {key: found[place] for key, found in self.spelled.items() if len(found) > place}
            number = graph.add(
                "LabelEncoder", written, domain=ML, keys_strings=list(numbers), values_int64s=list(numbers.values()),
                default_int64=_NOTHING if place else _INNER,
            )  # fmt: skip
            places.append(graph.add("Unsqueeze", number, axis))
        joined = places[0] if len(places) == 1 else graph.add("Concat", *places, axis=-1)  # [N, t, P, places]
        flat = graph.add("Reshape", joined, graph.constant([0, 0, -1], np.int64))
        ended = graph.add("Pad", flat, graph.constant([0, 0, 0, 0, 0, 1], np.int64), graph.constant(_END, np.int64))
        row = packed_nodes(graph, graph.add("Reshape", ended, graph.constant([0, -1], np.int64)))
        return graph.add("Pad", row, graph.constant([0, 0, 0, 1], np.int64))

    def _longest_nodes(self, graph: Graph, characters: str, start: str) -> tuple[str, str]:
        """Characters and token of the longest piece that begins at each character; 0 where none does."""
        count, axis = len(self.alone), graph.constant([0], np.int64)
        first, later, one = (graph.constant(value, np.int64) for value in (_FIRST, _LATER, 1))
        state = graph.add("Where", _true(graph, start), first, later)
        # A character that begins a word has another number, which no piece goes on with.
        marked = graph.add("Add", characters, graph.add("Mul", start, graph.constant(count, np.int64)))
        steps = [characters, *(_moved(graph, marked, place, 0) for place in range(1, self.longest))]
        followed = graph.add("Concat", *(graph.add("Unsqueeze", step, axis) for step in steps), axis=0)
        found = graph.add("Scan", state, followed, body=self._step(graph, 2 * count), num_scan_inputs=1, skipped=1)
        sizes = graph.constant(np.arange(1, self.longest + 1)[:, None, None], np.int64)
        hit = graph.add("Cast", graph.add("Greater", found, graph.constant(0, np.int64)), to=TensorProto.INT64)
        length = graph.add("ReduceMax", graph.add("Mul", hit, sizes), axis, keepdims=0)  # [N, L]
        last = graph.add("Sub", graph.add("Max", length, one), one)
        piece = graph.add("GatherElements", found, graph.add("Unsqueeze", last, axis), axis=0)
        return length, graph.add("Squeeze", piece, axis)

    def _step(self, graph: Graph, width: int) -> GraphProto:
        """From states and next characters [N, L] to the next states, and the tokens that end in them."""
        ends, wide = graph.constant(self.pieces, np.int64), graph.constant(width, np.int64)
        nodes = [
            helper.make_node("Mul", ["state", wide], ["scaled"]),
            helper.make_node("Add", ["scaled", "character"], ["key"]),
            helper.make_node(
                "LabelEncoder", ["key"], ["next"], domain=ML, keys_int64s=list(self.edges),
                values_int64s=list(self.edges.values()), default_int64=_DEAD,
            ),
            helper.make_node("Gather", [ends, "next"], ["token"], axis=0),
        ]  # fmt: skip
        values = [
            helper.make_tensor_value_info(name, TensorProto.INT64, [None, None])
            for name in ("state", "character", "next", "token")
        ]
        return helper.make_graph(nodes, "step", values[:2], values[2:])

    def _failed_nodes(self, graph: Graph, start: str, inside: str, lost: str) -> str:
        """Whether each character's word is unknown: a part of it is no piece, or it is too long."""
        word = graph.add("CumSum", start, graph.constant(1, np.int64))
        nothing = graph.add("Mul", word, graph.constant(0, np.int64))
        bad, counted = (graph.add("Cast", mask, to=TensorProto.INT64) for mask in (lost, inside))
        worst = graph.add("ScatterElements", nothing, word, bad, axis=1, reduction="max")
        sizes = graph.add("ScatterElements", nothing, word, counted, axis=1, reduction="add")
        long = graph.add("Greater", sizes, graph.constant(self.most_characters, np.int64))
        failed = graph.add("Or", _true(graph, worst), long)
        number = graph.add("Cast", failed, to=TensorProto.INT64)
        return _true(graph, graph.add("GatherElements", number, word, axis=1))

    def _ended_nodes(self, graph: Graph, tokens: str) -> str:
        """At most `max_tokens`; a row that is cut off ends in an end all the same."""
        ends = [graph.constant([value], np.int64) for value in (0, self.max_tokens, 1)]
        cut = graph.add("Slice", tokens, *ends)
        present = graph.add("Cast", graph.add("Greater", cut, graph.constant(0, np.int64)), to=TensorProto.INT64)
        place = graph.add("CumSum", present, graph.constant(1, np.int64))
        last = graph.add("Equal", place, graph.constant(self.max_tokens, np.int64))
        return graph.add("Where", last, graph.constant(self.fixed[2], np.int64), cut, output="tokens")


class _Tree:
    """The pieces as a tree of characters."""

    def __init__(self, vocabulary: Mapping[str, int], prefix: str) -> None:
        inner = {piece: piece.removeprefix(prefix) for piece in vocabulary if piece.startswith(prefix)}
        inner = {piece: rest for piece, rest in inner.items() if rest}
        letters = sorted({letter for piece in vocabulary for letter in piece})
        self.characters = {letter: number for number, letter in enumerate(letters, start=_END + 1)}
        self.pieces, self.longest = [0, 0, 0], 1
        self.edges: dict[int, int] = {}
        self._width = 2 * (len(letters) + _END + 1)
        for piece, number in vocabulary.items():
            if piece in inner:
                self._add(_LATER, [self.characters[letter] for letter in inner[piece]], number + 1)
            self._add(_FIRST, [self.characters[letter] for letter in piece], number + 1)
        self._add(_FIRST, [_END], vocabulary["[SEP]"] + 1)

    def _add(self, state: int, numbers: list[int], token: int) -> None:
        for number in numbers:
            key = state * self._width + number
            if key not in self.edges:
                self.edges[key] = len(self.pieces)
                self.pieces.append(0)
            state = self.edges[key]
        self.pieces[state] = token
        self.longest = max(self.longest, len(numbers))


def _spellings(tokenizer: Tokenizer, known: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], Array]:
    """The numbers of what each character is normalised to, if not to an INNER; and which numbers stand alone."""
    spelled: dict[str, tuple[int, ...]] = {}
    alone = np.zeros(len(known) + _END + 1, np.int64)
    alone[[_ALONE, _END]] = 1
    single: dict[str, bool] = {}
    for code in _ASSIGNED:
        numbers = []
        written = tokenizer.normalizer.normalize_str(chr(code))
        ideograph = len(written) == len(" . ") and written == f" {written.strip()} "
        for letter in written.strip() if ideograph else written:
            if letter == " ":
                numbers.append(_BLANK)
                continue
            if letter not in single:
                words = tokenizer.pre_tokenizer.pre_tokenize_str(f"a{letter}a")
                single[letter] = ideograph or len(words) == len("a.a")
            number = known.get(letter, _ALONE if single[letter] else _INNER)
            alone[number] = single[letter]
            numbers.append(number)
        if numbers != [_INNER]:
            spelled[chr(code)] = tuple(numbers) or (_NOTHING,)
    return spelled, alone


def _true(graph: Graph, number: str) -> str:
    return graph.add("Cast", number, to=TensorProto.BOOL)


def _moved(graph: Graph, values: str, places: int, filler: int, *, keep: bool = False) -> str:
    """Columns [N, L] moved to the left, or to the right if `places` is below zero; `keep` drops none of them."""
    pads = [0, -places, 0, 0 if keep else places]
    return graph.add("Pad", values, graph.constant(pads, np.int64), graph.constant(filler, np.int64))


def _visited(graph: Graph, start: str, length: str) -> str:
    """The characters at which pieces of words begin: first ones, and those behind a piece that begins at one."""
    one = graph.constant(1, np.int64)
    ones = graph.add("Add", graph.add("Mul", start, graph.constant(0, np.int64)), one)
    place = graph.add("CumSum", ones, one, exclusive=1)
    jump, visited = graph.add("Add", place, length), start
    for _ in range(_DOUBLINGS):
        visited = graph.add("ScatterElements", visited, jump, visited, axis=1, reduction="max")
        jump = graph.add("GatherElements", jump, jump, axis=1)
    return _true(graph, visited)
