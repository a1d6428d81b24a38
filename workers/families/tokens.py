"""Texts as numbers of known words, or characters. ONNX Runtime's tokenizer makes them, in training as in serving."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.core.signature import Datatype, Tensor
from workers.export.graph import ML, ORT, Graph
from workers.export.runtime import open_session
from workers.learning import Array

Kind = Literal["words", "characters"]
# Scripts without blanks between words, of which every character is a word; RE2 knows them by name.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTERS = rf"[^{_UNSPACED}\pP\pS\pZ\pC]+"
_WORD = rf"{_LETTERS}(?:['’]{_LETTERS})*|[{_UNSPACED}\pP\pS]"  # noqa: RUF001 - both apostrophes are meant
_SURROGATES = range(0xD800, 0xE000)  # half characters, which UTF-8 does not have
_PLANES = 0x30000  # those with assigned letters and ideographs
_BATCH = 256


def fold(token: str) -> str:
    """What tokens that differ in case, width or composition alone have in common; all blanks are one."""
    return " " if token.isspace() else unicodedata.normalize("NFKC", token).lower()


@dataclass(frozen=True, slots=True)
class Tokens:
    """The known tokens by how they may be written, numbered from 1; any other is 0."""

    kind: Kind
    numbers: dict[str, int]

    @classmethod
    def learn(cls, kind: Kind, texts: Array, most: int, min_rows: int, limit: int) -> "Tokens":
        """The `limit` tokens of the most rows, of those in at least `min_rows`.

        Args:
            kind: of tokens.
            texts: of training, str objects [N, t].
            most: characters of a text that are read.
            min_rows: at least this many rows hold a token.
            limit: most tokens.
        """
        written: Counter[str] = Counter()
        for row in _characters(texts, most) if kind == "characters" else _words(texts, most):
            written.update(row)
        folded = {token: fold(token) for token in written}
        rows: Counter[str] = Counter()
        for token, count in written.items():
            rows[folded[token]] += count
        ranked = sorted((token for token in rows if rows[token] >= min_rows), key=lambda token: (-rows[token], token))
        known = {token: number for number, token in enumerate(ranked[:limit], start=1)}
        forms = folded | (_spellings(known) if kind == "words" else _variants())
        forms |= {token: token for token in known}
        return cls(kind, {token: known[same] for token, same in sorted(forms.items()) if same in known})

    @property
    def count(self) -> int:
        """Different tokens; the numbers go from 1 to it."""
        return max(self.numbers.values(), default=0)

    def to_nodes(self, graph: Graph, texts: str, gap: int) -> str:
        """From texts [N, t] to numbers [N, …], `gap` zeros after each text's."""
        number = graph.add(
            "LabelEncoder", token_nodes(graph, self.kind, texts), domain=ML, keys_strings=list(self.numbers),
            values_int64s=list(self.numbers.values()), default_int64=0,
        )  # fmt: skip
        padded = graph.add("Pad", number, graph.constant([0, 0, 0, 0, 0, gap], np.int64))
        return _rows(graph, padded)


def cut_nodes(graph: Graph, most: int) -> str:
    """From the input `text` [N, t] to texts of the first `most` characters, of which RE2 counts 1,000 at most.

    A blank before and after a text makes its first and last word like any other, and leaves no text empty. A batch is
    as wide as its longest text, so one of a million characters must not get as far as the tokens.
    """
    blank = graph.constant([" "], object)
    text = graph.add("StringConcat", graph.add("StringConcat", blank, "text"), blank)
    return _rows(graph, _tokenizer(graph, text, tokenexp=f"^(?s:.{{1,{most}}})"))


def token_nodes(graph: Graph, kind: Kind, texts: str) -> str:
    """From texts [N, t] to tokens [N, t, …], the empty text where one has fewer than another."""
    return _tokenizer(graph, texts, **({"separators": [""]} if kind == "characters" else {"tokenexp": _WORD}))


def run_nodes(build: Callable[[Graph], str], texts: Array, datatype: Datatype, rank: int) -> Iterator[Array]:
    """What nodes over the input `text` give for the rows of `texts`, a batch at a time.

    Args:
        build: adds nodes and returns the name of the last one's output.
        texts: str objects [N, t].
        datatype: of the output.
        rank: of the output.
    """
    graph = Graph()
    graph.add("Identity", build(graph), output="out")
    model = graph.model([Tensor("text", "BYTES", (-1, texts.shape[1]))], [Tensor("out", datatype, (-1,) * rank)])
    session = open_session(model.SerializeToString(), 1)
    for start in range(0, len(texts), _BATCH):
        yield session.run(None, {"text": texts[start : start + _BATCH]})[0]


def flat_rows(batches: Iterator[Array]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers [T] of all rows one after the other, and each one's row; runs of zeros are cut to one."""
    numbers, rows, begin = [], [], 0
    for batch in batches:
        kept = batch > 0
        kept[:, 1:] |= batch[:, :-1] > 0
        numbers.append(batch[kept])
        rows.append(np.nonzero(kept)[0] + begin)
        begin += len(batch)
    return np.concatenate(numbers), np.concatenate(rows)


def _tokenizer(graph: Graph, texts: str, **how: Any) -> str:  # noqa: ANN401 - attributes of the operator
    return graph.add("Tokenizer", texts, domain=ORT, mark=0, mincharnum=1, pad_value="", **how)


def _rows(graph: Graph, name: str) -> str:
    return graph.add("Reshape", name, graph.constant([0, -1], np.int64))


def _characters(texts: Array, most: int) -> Iterator[set[str]]:
    for row in texts.tolist():
        yield {" "}.union(*(text[:most] for text in row))


def _words(texts: Array, most: int) -> Iterator[set[str]]:
    for batch in run_nodes(lambda graph: token_nodes(graph, "words", cut_nodes(graph, most)), texts, "BYTES", 3):
        for row in batch.reshape(len(batch), -1).tolist():
            yield set(row) - {""}


def _spellings(words: Iterable[str]) -> dict[str, str]:
    """Other ways to write folded words: in capitals, with a capital, with accents as characters of their own."""
    found: dict[str, str] = {}
    for word in words:
        for form in (word, word.upper(), word.capitalize()):
            found |= {written: word for written in (form, unicodedata.normalize("NFD", form)) if fold(written) == word}
    return found


@cache
def _variants() -> dict[str, str]:
    """Every character that is folded into another, and that."""
    characters = (chr(code) for code in range(_PLANES) if code not in _SURROGATES)
    return {character: same for character in characters if (same := fold(character)) != character}
