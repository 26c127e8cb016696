"""jwt_minimal beside the bare signature, PyJWT and joserfc: `python -m bench.jwt` (needs both).

All contestants of a table take turns, round by round. A figure is that of the fastest round: what
disturbs a measurement on a shared machine only ever adds. Ratios compare figures of one run.

Left out: making keys, fetching a JWKS. The key has 2048 bits; the claims are those of a token of
this server. PyJWT and joserfc are given their own key objects, made once; `decode` gets what a
caller has, the parsed JWKS, and reads the key from it every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import joserfc.jwk
import joserfc.jwt
import jwt
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

import jwt_minimal

ROUNDS = 300  # of a millisecond or two each: some of them go undisturbed
PRIVATE_KEY = rsa.generate_private_key(65537, 2048)
JWK = jwt_minimal.public_jwk(PRIVATE_KEY.public_key())
JWKS = {"keys": [JWK]}
KID = JWK["kid"]
NOW = int(time.time())
CLAIMS = {
    "iss": "http://127.0.0.1:8080",
    "sub": "alice",
    "iat": NOW,
    "nbf": NOW,
    "exp": NOW + 3600,
    "jti": "16fd2706-8baf-433b-82eb-8c7fada847da",
}
TOKEN = jwt_minimal.encode(CLAIMS, PRIVATE_KEY, KID)
SIGNING_INPUT = TOKEN.rpartition(".")[0].encode()


class FreeSigner:
    """Signs at no cost: what remains is the work of the encoder."""

    def sign(self, *_: object) -> bytes:
        return bytes(256)


def microseconds(contestants: Mapping[str, Callable[[], object]], batch: int) -> dict[str, float]:
    """The time of one call of each, in its fastest round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, call in contestants.items():
            started = time.perf_counter()
            for _ in range(batch):
                call()
            times[name].append((time.perf_counter() - started) / batch * 1e6)
    return {name: min(taken) for name, taken in times.items()}


def refuse(token: str) -> None:
    try:
        jwt_minimal.decode(token, JWKS)
    except jwt_minimal.InvalidToken:
        return
    raise AssertionError("rubbish was accepted")


def table(title: str, base: str, taken: dict[str, float]) -> None:
    print(f"\n{title} (microseconds; ratio to: {base})")
    for name, time_taken in taken.items():
        print(f"  {name:44}{time_taken:10.1f}{time_taken / taken[base]:9.3f}")


def main() -> None:
    theirs = joserfc.jwk.RSAKey.import_key(PRIVATE_KEY)
    public = joserfc.jwk.RSAKey.import_key(dict(JWK))
    header = {"alg": "RS256", "typ": "JWT", "kid": KID}
    pyjwt_key = PRIVATE_KEY.public_key()
    free: rsa.RSAPrivateKey = FreeSigner()  # type: ignore[assignment]
    bare = "private_key.sign(...)"
    encoding = microseconds(
        {
            bare: lambda: PRIVATE_KEY.sign(SIGNING_INPUT, padding.PKCS1v15(), SHA256()),
            "jwt_minimal.encode": lambda: jwt_minimal.encode(CLAIMS, PRIVATE_KEY, KID),
            "PyJWT encode": lambda: jwt.encode(CLAIMS, PRIVATE_KEY, "RS256", headers={"kid": KID}),
            "joserfc encode": lambda: joserfc.jwt.encode(header, CLAIMS, theirs),
            "jwt_minimal.encode, signature free of charge": lambda: jwt_minimal.encode(
                CLAIMS, free, KID
            ),
        },
        batch=5,
    )
    table("encode", bare, encoding)
    decoding = microseconds(
        {
            "jwt_minimal.decode (standard library only)": lambda: jwt_minimal.decode(TOKEN, JWKS),
            "PyJWT decode (OpenSSL)": lambda: jwt.decode(TOKEN, pyjwt_key, ["RS256"]),
            "joserfc decode (OpenSSL)": lambda: joserfc.jwt.decode(TOKEN, public, ["RS256"]),
            "PyJWT decode, the key read from its JWK": lambda: jwt.decode(
                TOKEN, jwt.PyJWK(JWK), ["RS256"]
            ),
        },
        batch=5,
    )
    table("decode", "jwt_minimal.decode (standard library only)", decoding)
    rubbish = {
        "letters": "A" * 2**20,
        "dots": "." * 2**20,
        "a good token with a tail": TOKEN + "A" * 2**20,
        "16 KiB of brackets": jwt_minimal.b64url_encode(b"[" * 12_200) + ".AA.AA",
        "16 KiB of claims under a wrong signature": TOKEN.replace(".", "." + "e30g" * 3900, 1),
    }
    refusing = {name: partial(refuse, token) for name, token in rubbish.items()}
    table(
        "refuse a megabyte, or the worst that is read", "letters", microseconds(refusing, batch=2)
    )


if __name__ == "__main__":
    main()
