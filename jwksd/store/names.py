"""What is a name, an e-mail address, a password: checked before anything is looked up.

    checked_name, checked_email, checked_password      text as it came -> text that may be used
    checked_new_name                                   a name for a new account
    fold                                               the form in which two names are compared

Rules of this file:
- Names are compared after Unicode NFC; what could be mistaken for another name (control and format
  characters, others that show nothing, odd spaces) is not a name. Two names that differ in case
  only are one.
- E-mail addresses are kept as they were typed; passwords are normalised and nothing else.
- A refusal is one sentence of ours; it repeats nothing of the input.

It leaves out: letters that look alike across scripts, quoted local parts, and whether mail arrives.
"""

from __future__ import annotations

import re
import unicodedata

MAX_NAME = 64  # code points: fits a log line, and is enough for a `sub`
NFC_GROWTH = 4  # code points that one may be decomposed into canonically, at the most (UAX #15)
MAX_EMAIL = 254  # RFC 5321 §4.5.3.1.3, less the two angle brackets
MAX_PASSWORD = 1024  # code points; a generated one has 36
# Local part and domain as RFC 5321 bounds them; quoting and address literals are left out.
EMAIL = re.compile(
    r"[^\s@]{1,64}@(?=.{1,253}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc
# What isprintable() lets through and yet shows nothing: Unicode's Default_Ignorable_Code_Point that
# are marks or letters, and three that fonts draw blank (braille, Khitan filler, null notehead).
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U00016fe4\U0001d159\U000e0100-\U000e01ef]"
)


def fold(name: str) -> str:
    """A name as names are compared: those with the same folded form are one (UAX #15, UTS #39)."""
    return name if name.isascii() and name.islower() else _folded(name)


def _folded(name: str) -> str:
    # Unicode D145: decomposed first, so that marks in another order or place make no difference.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFD", name).casefold())


class Malformed(ValueError):
    """The input cannot be read, or cannot be a name, an address or a password; it says why."""


def checked_name(text: str) -> str:
    """The name in NFC.

    Raises:
        Malformed: not 1 to 64 visible characters, or with spaces or a colon where none may be.
    """
    # Bounded before it is normalised: NFC takes a second for 16,000 pairs of combining marks.
    name = unicodedata.normalize("NFC", text) if len(text) <= NFC_GROWTH * MAX_NAME else ""
    if not 1 <= len(name) <= MAX_NAME:
        raise Malformed(f"username must have 1 to {MAX_NAME} characters")
    # isprintable() is False for control, format, private and unassigned characters, lone
    # surrogates, and every space but U+0020.
    if not name.isprintable() or ":" in name:
        raise Malformed("username must consist of printable characters, without a colon")
    if INVISIBLE.search(name):
        raise Malformed("username must not hold characters that show nothing")
    if name.strip(" ") != name or "  " in name:
        raise Malformed("username must not begin or end with a space or hold two in a row")
    return name


def checked_new_name(text: str) -> str:
    """The name in NFC for a new account; older accounts may have names that this refuses.

    Raises:
        Malformed: as `checked_name`, or it holds characters that stand for others.
    """
    name = checked_name(text)
    if unicodedata.normalize("NFKC", name) != name:
        raise Malformed(
            "username must not hold characters that stand for others, such as full-width letters, "
            "ligatures or superscripts: write the plain ones"
        )
    return name


def checked_email(text: str) -> str:
    """The address as typed.

    Raises:
        Malformed: it is not of the form local@domain.tld.
    """
    if len(text) > MAX_EMAIL or not text.isprintable() or not EMAIL.fullmatch(text):
        raise Malformed("email must be an address like name@example.org, or be left out")
    return text


def checked_password(text: str) -> str:
    """The password in NFC (RFC 7617 §2.1), else unchanged: it is compared character for character.

    Raises:
        Malformed: it is empty, too long, or not Unicode text, or it holds control characters.
    """
    if not 1 <= len(text) <= MAX_PASSWORD:
        raise Malformed(f"password must have 1 to {MAX_PASSWORD} characters")
    if CONTROL.search(text):
        raise Malformed("password must not hold control characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Malformed("password must not hold a lone surrogate") from error
    # Keyboards differ in how they spell an accent. Bounded above: NFC takes its time for marks.
    return text if text.isascii() else unicodedata.normalize("NFC", text)
