"""A private key at rest: sealed as a compact JWE that only the secret opens.

    secret --Argon2id, salt--> content key (64 octets): 32 for HMAC-SHA-512, 32 for AES-256

    base64url of   {"alg":"dir","enc":"A256CBC-HS512","kid":...,"exp":...,"p2s":salt}
               .   nothing, with alg=dir
               .   iv  .  AES-256-CBC(private JWK)  .  tag over all that stands before

Rules of this file:
- Its verbs come in pairs: encrypt and decrypt, seal and open_seal, the key to a JWK and back.
- The format is RFC 7516 with alg=dir, enc=A256CBC-HS512 (RFC 7518 §5.2.5), so any JOSE library
  opens a sealed key with the content key. `kid` and `exp` are authenticated with it: a
  program that can write the file but does not know the secret cannot forge, swap or extend a key.
- The tag is compared before anything is decrypted, and every failure is the one `SealBroken`.

AES and the private numbers of a key stay in this file.

Left out: protection from an attacker who puts back an older copy of the whole file. No seal can
tell that.
"""

from __future__ import annotations

import hmac
import json
import os
from typing import Any

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from jwt_minimal import b64url_decode, b64url_encode, thumbprint

RSA_NUMBERS = ("n", "e", "d", "p", "q", "dp", "dq", "qi")  # RFC 7518 §6.3
SALT_BYTES = 16  # RFC 9106 §3.1
# OWASP's floor for Argon2id: 17 ms, once per start for us, but for each guess of a thief.
DERIVATION_TIME, DERIVATION_KIB, DERIVATION_LANES = 2, 19_456, 1
CONTENT_KEY_BYTES = 64  # RFC 7518 §5.2.5: 32 for HMAC-SHA-512, then 32 for AES-256
BLOCK_BYTES = 16
TAG_BYTES = 32  # RFC 7518 §5.2.5: the first half of the HMAC


class SealBroken(ValueError):
    """A sealed key does not open under this secret: changed, swapped, or sealed with another."""


def derive(secret: bytes, salt: bytes) -> bytes:
    """The content key: Argon2id, so that guessing a weak secret costs what guessing must cost.

    Raises:
        MemoryError: there is not enough for it.
    """
    cost = DERIVATION_TIME, DERIVATION_KIB, DERIVATION_LANES
    try:
        return hash_secret_raw(secret, salt, *cost, CONTENT_KEY_BYTES, Type.ID)
    except HashingError as error:
        raise MemoryError(f"cannot derive a key: {DERIVATION_KIB} KiB are needed") from error


def encrypt(content_key: bytes, iv: bytes, aad: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """A256CBC-HS512 (RFC 7518 §5.2.2.1): the ciphertext and its authentication tag."""
    pkcs7 = padding.PKCS7(BLOCK_BYTES * 8).padder()
    padded = pkcs7.update(plaintext) + pkcs7.finalize()
    aes = Cipher(algorithms.AES(content_key[32:]), modes.CBC(iv)).encryptor()
    ciphertext = aes.update(padded) + aes.finalize()
    return ciphertext, _tag(content_key, iv, aad, ciphertext)


def decrypt(content_key: bytes, iv: bytes, aad: bytes, ciphertext: bytes, tag: bytes) -> bytes:
    """The inverse of `encrypt` (RFC 7518 §5.2.2.2).

    Raises:
        SealBroken: anything was changed; one error for all, so that there is no oracle.
    """
    # The tag is compared before AES or the padding is looked at.
    if not hmac.compare_digest(tag, _tag(content_key, iv, aad, ciphertext)):
        raise SealBroken("the authentication tag does not match")
    aes = Cipher(algorithms.AES(content_key[32:]), modes.CBC(iv)).decryptor()
    pkcs7 = padding.PKCS7(BLOCK_BYTES * 8).unpadder()
    return pkcs7.update(aes.update(ciphertext) + aes.finalize()) + pkcs7.finalize()


def _tag(content_key: bytes, iv: bytes, aad: bytes, ciphertext: bytes) -> bytes:
    message = aad + iv + ciphertext + (len(aad) * 8).to_bytes(8, "big")
    return hmac.digest(content_key[:32], message, "sha512")[:TAG_BYTES]


def seal(private_key: rsa.RSAPrivateKey, exp: int, content_key: bytes, salt: bytes) -> bytes:
    """The key as compact JWE; `kid`, `exp` and the salt stand in its authenticated header."""
    jwk = _private_jwk(private_key)
    header = {
        "alg": "dir",
        "enc": "A256CBC-HS512",
        "kid": thumbprint(jwk),
        "exp": exp,
        "p2s": b64url_encode(salt),
    }
    protected = b64url_encode(_json(header))
    iv = os.urandom(BLOCK_BYTES)
    ciphertext, tag = encrypt(content_key, iv, protected.encode(), _json(jwk))
    # RFC 7516 §7.1; the second part, the encrypted content key, is empty with alg=dir.
    parts = (protected, "", *map(b64url_encode, (iv, ciphertext, tag)))
    return ".".join(parts).encode()


def salt_of(blob: object) -> bytes:
    """The salt that a sealed key was derived with. Not authenticated: only `open_seal` tells.

    Raises:
        SealBroken: this is not a key sealed by us.
    """
    try:
        salt = b64url_decode(_header(blob)["p2s"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SealBroken("not a sealed key") from error
    if len(salt) != SALT_BYTES:
        raise SealBroken("not a sealed key")
    return salt


def open_seal(blob: bytes, exp: int, content_key: bytes) -> tuple[str, rsa.RSAPrivateKey]:
    """The inverse of `seal`: the `kid` and the key.

    Raises:
        SealBroken: it does not open, or `exp` is not the one that was sealed.
    """
    try:
        protected, empty, iv, ciphertext, tag = blob.decode("ascii").split(".")
        if empty:  # RFC 7518 §4.5: an encrypted key beside alg=dir is refused, whatever the tag
            raise SealBroken("not a sealed key")
        plaintext = decrypt(
            content_key,
            b64url_decode(iv),
            protected.encode(),
            b64url_decode(ciphertext),
            b64url_decode(tag),
        )
        header = _header(blob)
    except SealBroken:
        raise
    except ValueError as error:
        raise SealBroken("not a sealed key") from error
    if header["exp"] != exp:
        raise SealBroken(f"the row says exp={exp}, the sealed header {header['exp']}")
    # Authenticated, hence written by us: validating the primes again would take 50 ms per key.
    return header["kid"], _private_key(json.loads(plaintext))


def _header(blob: object) -> dict[str, Any]:
    if not isinstance(blob, bytes):
        raise SealBroken("not a sealed key")
    header = json.loads(b64url_decode(blob.split(b".", 1)[0].decode("ascii")))
    if not isinstance(header, dict):
        raise SealBroken("not a sealed key")
    return header


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _private_jwk(private_key: rsa.RSAPrivateKey) -> dict[str, str]:
    numbers = private_key.private_numbers()
    public = numbers.public_numbers
    values = (
        *(public.n, public.e, numbers.d, numbers.p, numbers.q),
        *(numbers.dmp1, numbers.dmq1, numbers.iqmp),
    )
    octets = (value.to_bytes((value.bit_length() + 7) // 8, "big") for value in values)
    return {"kty": "RSA", **dict(zip(RSA_NUMBERS, map(b64url_encode, octets)))}


def _private_key(jwk: dict[str, str]) -> rsa.RSAPrivateKey:
    n, e, d, p, q, dp, dq, qi = (
        int.from_bytes(b64url_decode(jwk[name]), "big") for name in RSA_NUMBERS
    )
    numbers = rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, rsa.RSAPublicNumbers(e, n))
    try:
        return numbers.private_key(unsafe_skip_rsa_key_validation=True)
    except TypeError:  # cryptography before 39 has no such choice, and validates always
        return numbers.private_key()
