"""Patterns in text that lead to a person: found, and replaced by what they were.

Comes in: text. Goes out: spans, or the text with ``[email]``, ``[iban]``, ``[card]``, ``[ip]``, ``[ssn]``,
``[phone]`` or ``[plate]`` in their place. Invariants: spans do not overlap; the work grows with the length of
the text alone (every pattern is bounded, so a hostile text cannot stall a stage); what is found once is not
looked at again.

It finds forms, not meanings: names, addresses and stories remain, so the result is ``text.redacted`` and not
less. ISO 13616 (IBAN, mod 97), ISO/IEC 7812 (cards, Luhn), ITU-T E.164 (at most 15 digits in a number), RFC
4291 (addresses), 20 CFR 422.103 (US social security numbers). Recognisers of meanings plug in beside it:
:mod:`pipeline.policy.recognisers`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

PATTERNS = "patterns"  # the name of this recogniser in a pack
_HIDDEN = "\0"  # stands where something was found; in no pattern
_GAP = r"[ \u00a0\u2009\u200b-\u200d\u202f\u2060\ufeff./\u2010-\u2015-]"  # between digits, also unseen
_CARD_DIGITS = range(12, 20)
# Length of an IBAN per country (the registry of ISO 13616).
_IBAN_LENGTHS = {
    name: int(length)
    for length, names in (
        pair.split(":")
        for pair in """15:NO 16:BE 18:DK,FI,FK,FO,GL,NL,SD 19:MK,SI 20:AT,BA,EE,KZ,LT,LU,MN,XK 21:CH,HR,LI,LV
        22:BG,BH,CR,DE,GB,GE,IE,ME,RS,VA 23:AE,GI,IL,IQ,OM,SO,TL 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG
        25:LY,PT,ST 26:IS,TR 27:BI,DJ,FR,GR,IT,MC,MR,SM 28:AL,AZ,BY,CY,DO,GT,HN,HU,LB,NI,PL,SV
        29:BR,EG,PS,QA,UA 30:JO,KW,MU,YE 31:MT,SC 32:LC 33:RU""".split()  # noqa: SIM905
    )
    for name in names.split(",")
}


class Span(NamedTuple):
    """Half-open, in characters. ``score``: how sure its finder is, 0 to 1; a form that fits is certain."""

    start: int
    end: int
    kind: str
    score: float = 1.0


def find(text: str) -> list[Span]:
    """All that is recognised, in the order of the text."""
    spans: list[Span] = []
    for kind, search in _SEARCHES:
        found = [Span(start, end, kind) for start, end in search(text)]
        text = _joined(text, found, lambda span: _HIDDEN * (span.end - span.start))
        spans += found
    return sorted(span for span in spans if span.kind != _DATE)


def redact(text: str) -> str:
    """The text with each span replaced by its kind in brackets."""
    return replaced(text, find(text))


def replaced(text: str, spans: Iterable[Span]) -> str:
    """The text with a kind in brackets in place of each of these spans, ordered and disjoint."""
    return _joined(text, spans, lambda span: f"[{span.kind}]")


def _joined(text: str, spans: Iterable[Span], instead: Callable[[Span], str]) -> str:
    parts: list[str] = []
    done = 0
    for span in spans:
        parts += [text[done : span.start], instead(span)]
        done = span.end
    return "".join([*parts, text[done:]])


# --- e-mail: from each @ outwards, so that a long run of letters is walked once

_DOMAIN = re.compile(r"@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,63}")
_LOCAL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]")
_LOCAL_MAX = 64


def _emails(text: str) -> Iterator[tuple[int, int]]:
    last = 0
    for match in _DOMAIN.finditer(text):
        start = match.start()
        while start > max(last, match.start() - _LOCAL_MAX) and _LOCAL.match(text, start - 1):
            start -= 1
        if start < match.start():
            yield start, match.end()
            last = match.end()


# --- numbers with a checksum: a candidate may swallow what follows, so shorter forms are tried too

_IBAN = re.compile(r"(?<![^\W_])(?=([A-Za-z]{2}[0-9]{2}(?:[ -]?[0-9A-Za-z]){11,30}))")
_CARD = re.compile(rf"(?<![\d+])(?=(\d(?:{_GAP}?\d){{11,18}}))")


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    last = 0
    for match in _IBAN.finditer(text):
        if match.start() < last:
            continue
        candidate = match.group(1)
        places = [at for at, sign in enumerate(candidate) if sign.isalnum()]
        length = _IBAN_LENGTHS.get(candidate[:2].upper(), len(places) + 1)
        if length <= len(places):
            end = places[length - 1] + 1
            whole = match.start() + end
            if (
                _mod97("".join(candidate[at] for at in places[:length]))
                and not text[whole : whole + 1].isalnum()
            ):
                last = whole
                yield match.start(), last


def _mod97(iban: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as 10 … 35, modulo 97 is 1."""
    return int("".join(str(int(sign, 36)) for sign in iban[4:] + iban[:4])) % 97 == 1


def _cards(text: str) -> Iterator[tuple[int, int]]:
    last = 0
    for match in _CARD.finditer(text):
        if match.start() < last:
            continue
        candidate = match.group(1)
        places = [at for at, sign in enumerate(candidate) if sign.isdigit()]
        for length in _luhn_lengths([int(candidate[at]) for at in places]):
            end = match.start() + places[length - 1] + 1
            if not text[end : end + 1].isdigit():
                last = end
                yield match.start(), end
                break


def _luhn_lengths(digits: list[int]) -> list[int]:
    """How many of the first digits are a card's number, longest first: every second digit from the right
    doubled, the sum of all digits is a multiple of ten (ISO/IEC 7812-1)."""
    found = []
    first_doubled = first_plain = 0
    for length, digit in enumerate(digits, 1):
        doubled = 2 * digit - 9 * (digit > 4)
        first_doubled += doubled if length % 2 else digit
        first_plain += digit if length % 2 else doubled
        total = first_plain if length % 2 else first_doubled
        if length in _CARD_DIGITS and total % 10 == 0:
            found.append(length)
    return found[::-1]


# --- addresses of devices, and numbers of US social security: both would pass for telephone numbers

_IPV4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w]|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{2,39}(?:\.[0-9]{1,3}){0,3}(?![\w:]|\.\w)")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-])")


def _addresses(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    for match in pattern.finditer(text):
        try:
            ipaddress.ip_address(match.group())
        except ValueError:
            continue
        if match.group() != "::":  # an address of nobody, and in many texts a sign
            yield match.span()


def _social_security(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _SSN.finditer(text))


# --- telephone numbers, and dates that look like them

_DATE = "date"
_DATES = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d([-./])\d{1,2}\1\d{1,2}|\d{1,2}([-./])\d{1,2}\2(?:19|20)\d\d"
    r"|(?:19|20)\d\d ?[-\u2013/] ?(?:19|20)\d\d)(?!\d)"
)
_PHONE = re.compile(
    rf"(?<![\w+])(?:\+ ?)?\(?\d(?:(?:{_GAP}|[()]){{0,3}}\d){{6,14}}"
    r"(?:\s?(?:x|ext\.?|Durchwahl)\s?\d{1,6})?(?!\w)"
)
# Two groups of digits with a space or a hyphen between, and nothing else that speaks for a telephone.
_PAIR = re.compile(r"(\d+)(?:([ \u00a0\u2009\u202f]{1,3})|-)(\d+)")
# How the numbering plans that write no trunk zero part eight or nine digits in two, and North America seven.
# All other pairs of at most nine digits are a postcode beside a house number, or a postcode of two parts.
_PAIRS = {(3, 4), (4, 4), (2, 6), (6, 2), (3, 6), (2, 7), (1, 7), (1, 8)}
_APARTMENT = re.compile(r"(?:\b(?:apt|apartment|suite|unit|flat)\b\.?|[#№])\s?$", re.IGNORECASE)
_APARTMENT_MAX = 12


def _dates(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _DATES.finditer(text))


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in _PHONE.finditer(text):
        pair = _PAIR.fullmatch(match.group())
        before = text[max(0, match.start() - _APARTMENT_MAX) : match.start()]
        if pair is None or (_dialled(*pair.groups()) and not _APARTMENT.search(before)):
            yield match.span()


def _dialled(first: str, space: str | None, second: str) -> bool:
    """Whether someone would write a telephone number in these two groups."""
    if int(first[0]) == 0 or len(first) + len(second) > 9:  # a trunk zero; more digits than an address has
        return True
    # Nine digits after a five: a Brazilian mobile, which begins with 9, or with a hyphen a US postcode.
    mobile = (len(first), len(second)) == (5, 4) and (int(first[0]) == 9 or space is None)
    return mobile or (len(first), len(second)) in _PAIRS


# --- number plates, in capitals only: in small letters half of all texts would match. Without those that are
# three letters and three digits (Sweden, Finland: "ISO 900") or two letters, a space and five digits (Poland:
# an American state with its postcode).

_PLATE = re.compile(
    r"(?<![\w-])(?:"
    r"[A-ZÄÖÜ]{1,3}-[A-Z]{1,2} ?\d{1,4}[EH]?"  # Germany
    r"|[A-Z]{1,2}-\d{3,5} ?[A-Z]{1,2}"  # Austria
    r"|[A-Z]{2}(?P<gap>[ -]?)\d{3}(?P=gap)[A-Z]{2}"  # France, Italy
    r"|\d-[A-Z]{3}-\d{3}"  # Belgium
    r"|\d{2,3}-[A-Z]{1,2}-\d{1,6}"  # Ireland, the Netherlands, Portugal
    r"|[A-Z]{2}-\d{2}-(?:[A-Z]{2}|\d{2})|\d{2}-(?:\d{2}|[A-Z]{2})-[A-Z]{2}|[A-Z]{2}-[A-Z]{2}-\d{2}"  # both
    r"|\d{2}-[A-Z]{3}-\d|\d-[A-Z]{3}-\d{2}|[A-Z]{2}-\d{3}-[A-Z]|[A-Z]-\d{3}-[A-Z]{2}"  # the Netherlands
    r"|[A-Z]{3}-\d{2}-[A-Z]|[A-Z]-\d{2}-[A-Z]{3}|\d-[A-Z]{2}-\d{3}"  # the same
    r"|[A-Z]{2}\d{2} ?[A-Z]{3}"  # United Kingdom
    r"|[A-Z]{3}-?\d[A-Z0-9]\d{2}"  # Brazil, Texas, New York
    r"|\d[A-Z]{3}\d{3}"  # California
    r"|\d{4} ?[BCDFGHJKLMNPRSTVWXYZ]{3}"  # Spain
    r")(?![\w-])"
)


def _plates(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _PLATE.finditer(text))


# Those with a checksum first, since what they find is certain; dates only hide themselves from the phones.
_SEARCHES: tuple[tuple[str, Callable[[str], Iterator[tuple[int, int]]]], ...] = (
    ("email", _emails),
    ("iban", _ibans),
    ("card", _cards),
    ("ip", partial(_addresses, _IPV6)),  # before the other, which some end with
    ("ip", partial(_addresses, _IPV4)),
    ("ssn", _social_security),
    (_DATE, _dates),
    ("phone", _phones),
    ("plate", _plates),
)
KINDS = tuple(dict.fromkeys(kind for kind, _ in _SEARCHES if kind != _DATE))
