"""Verifiers in Go: go-oidc as docs/services.md says, and the JWT libraries of Grafana and MinIO.

Grafana and MinIO themselves are not run. Their libraries get the key set and our tokens, and the
values that the page sets; which claims the two read, the page says after their documentation.
"""

from __future__ import annotations

import configparser
import json
import shutil
import tempfile
import unittest
from functools import cache
from typing import Any

from tests.live.issuing import ELSEWHERE, AsThePageSays, ask_program, needs

LIBRARIES = "/usr/share/gocode"  # of Debian's packages
SOURCES = f"{LIBRARIES}/src"
JUDGE = """
func main() {
	tokens, found := map[string]string{}, map[string]interface{}{}
	json.Unmarshal([]byte(os.Getenv("TOKENS")), &tokens)
	for name, text := range tokens {
		if claims, err := judge(text); err != nil {
			found[name] = map[string]string{"refused": err.Error()}
		} else {
			found[name] = claims
		}
	}
	json.NewEncoder(os.Stdout).Encode(found)
}
"""
GO = (
    """
package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/coreos/go-oidc"
	"golang.org/x/oauth2/clientcredentials"
)

%s

func judge(text string) (map[string]interface{}, error) {
	claims := map[string]interface{}{}
	if text == "" { // the token is the one that the service sends
		echo := func(w http.ResponseWriter, r *http.Request) {
			text = r.Header.Get("Authorization")[7:]
		}
		other := httptest.NewServer(http.HandlerFunc(echo))
		defer other.Close()
		client := service(context.Background(), os.Getenv("PASSWORD"))
		if _, err := client.Get(other.URL); err != nil {
			return nil, err
		}
	}
	token, err := verify(context.Background(), text)
	if err == nil {
		err = token.Claims(&claims)
	}
	return claims, err
}
"""
    + JUDGE
)
GRAFANA = (
    """
package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"time"

	"gopkg.in/square/go-jose.v2"
	"gopkg.in/square/go-jose.v2/jwt"
)

func judge(text string) (claims map[string]interface{}, err error) {
	var keys jose.JSONWebKeySet
	answer, err := http.Get(os.Getenv("KEYS"))
	if err == nil {
		err = json.NewDecoder(answer.Body).Decode(&keys)
	}
	if err != nil {
		return
	}
	token, err := jwt.ParseSigned(text)
	if err != nil {
		return
	}
	found := keys.Key(token.Headers[0].KeyID)
	if len(found) != 1 || !found[0].Valid() {
		return nil, errors.New("no key")
	}
	var registered jwt.Claims
	if err = token.Claims(found[0], &registered, &claims); err != nil {
		return
	}
	wanted := jwt.Expected{
		Issuer:   os.Getenv("ISSUER"),
		Audience: jwt.Audience{os.Getenv("AUDIENCE")},
		Time:     time.Now(),
	}
	return claims, registered.ValidateWithLeeway(wanted, 0)
}
"""
    + JUDGE
)
MINIO = (
    """
package main

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"os"

	"github.com/golang-jwt/jwt"
)

func fetch(url string, into interface{}) error {
	answer, err := http.Get(url)
	if err == nil {
		err = json.NewDecoder(answer.Body).Decode(into)
	}
	return err
}

func judge(text string) (map[string]interface{}, error) {
	metadata := struct {
		Issuer string
		Keys   string `json:"jwks_uri"`
	}{}
	set := struct{ Keys []struct{ Kid, N, E string } }{}
	if err := fetch(os.Getenv("CONFIG_URL"), &metadata); err != nil {
		return nil, err
	}
	if err := fetch(metadata.Keys, &set); err != nil {
		return nil, err
	}
	number := func(text string) *big.Int {
		octets, _ := base64.RawURLEncoding.DecodeString(text)
		return new(big.Int).SetBytes(octets)
	}
	claims := jwt.MapClaims{}
	parser := jwt.Parser{ValidMethods: []string{"RS256"}}
	_, err := parser.ParseWithClaims(text, claims, func(token *jwt.Token) (interface{}, error) {
		for _, key := range set.Keys {
			if key.Kid == token.Header["kid"] {
				return &rsa.PublicKey{N: number(key.N), E: int(number(key.E).Int64())}, nil
			}
		}
		return nil, errors.New("no key")
	})
	if err == nil && !claims.VerifyAudience(os.Getenv("CLIENT_ID"), true) {
		err = errors.New("another audience")
	}
	if err == nil && !claims.VerifyIssuer(metadata.Issuer, true) {
		err = errors.New("another issuer")
	}
	return claims, err
}
"""
    + JUDGE
)


@cache
def compiled() -> str:
    """A folder for what the compiler keeps: the three programs share most of it."""
    folder = tempfile.mkdtemp(prefix="jwks-go-")
    unittest.addModuleCleanup(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Judged(AsThePageSays):
    """What a program says of good tokens and of bad ones."""

    def judge(self, program: str, tokens: dict[str, str], **environ: str) -> dict[str, Any]:
        (self.folder / "main.go").write_text(program)
        return ask_program(
            ["go", "run", "main.go"], self.folder,
            GO111MODULE="off", GOPATH=LIBRARIES, GOCACHE=compiled(), GOFLAGS="",
            TOKENS=json.dumps({**self.flawed(), **tokens}), **environ,
        )  # fmt: skip

    def assertTaken(self, found: dict[str, Any], *names: str) -> None:
        """These were taken, for the account of the page, and the flawed ones were not."""
        for name in names:
            claims = found.pop(name)
            self.assertEqual(claims.get("sub"), self.name, claims)
        self.assertEqual(set(found), set(self.flawed()))
        for name, claims in found.items():
            with self.subTest(name):
                self.assertEqual(list(claims), ["refused"])


@needs("go", f"{SOURCES}/github.com/coreos/go-oidc", f"{SOURCES}/golang.org/x/oauth2")
class Go(Judged):
    heading = "Go"

    def test_gets_a_token_sends_it_and_verifies_it(self):
        program = GO % self.page.there("go", **{ELSEWHERE: self.issuer_url})
        found = self.judge(program, {"sent": "", "good": self.token()}, PASSWORD=self.password)
        self.assertEqual(found["sent"].get("scope"), "read", found["sent"])
        self.assertTaken(found, "sent", "good")


@needs("go", f"{SOURCES}/gopkg.in/square/go-jose.v2")
class TheLibraryOfGrafana(Judged):
    heading = "Grafana"

    def test_takes_what_the_page_expects(self):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(self.page.there("ini", **{ELSEWHERE: self.issuer_url}))
        wanted = parser["auth.jwt"]
        expected = json.loads(wanted["expect_claims"])
        found = self.judge(
            GRAFANA, {"good": self.token()}, KEYS=wanted["jwk_set_url"],
            ISSUER=expected["iss"], AUDIENCE=expected["aud"],
        )  # fmt: skip
        self.assertEqual(found["good"].get(wanted["role_attribute_path"]), "Editor", found["good"])
        self.assertEqual(found["good"][wanted["username_claim"]], self.name)
        self.assertTaken(found, "good")


@needs("go", f"{SOURCES}/github.com/golang-jwt/jwt")
class TheLibraryOfMinio(Judged):
    heading = "MinIO"

    def test_takes_what_the_page_expects(self):
        lines = self.page.there(**{ELSEWHERE: self.issuer_url}).split()
        wanted = {name[len("MINIO_IDENTITY_OPENID_") :]: value
                  for name, value in (line.split("=", 1) for line in lines)}  # fmt: skip
        found = self.judge(MINIO, {"good": self.token()}, **wanted)
        self.assertEqual(found["good"].get(wanted["CLAIM_NAME"]), "readwrite", found["good"])
        self.assertTaken(found, "good")


if __name__ == "__main__":
    unittest.main()
